"""Rebuild the decision, tables, figures and report of an experiment folder.

The same as `unimoer analyze`, with the same options.
"""

import sys

from unimoer.cli import main

if __name__ == "__main__":
    main(["analyze", *sys.argv[1:]])
