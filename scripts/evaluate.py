"""Score a trained run on retrieval and reranking data.

The same as `unimoer evaluate`, with the same options.
"""

import sys

from unimoer.cli import main

if __name__ == "__main__":
    # Not an argument of main: results record sys.argv as the command that made them.
    sys.argv[1:1] = ["evaluate"]
    main()
