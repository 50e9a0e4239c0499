"""Score a trained run on retrieval and reranking data.

The same as `unimoer evaluate`, with the same options.
"""

import sys

from unimoer.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
