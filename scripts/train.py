"""Train one adapter from a configuration file.

The same as `unimoer train`, with the same options.
"""

import sys

from unimoer.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
