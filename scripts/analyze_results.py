"""Rebuild the decision, tables, figures and report of a study's folder.

The same as `unimoer analyze`, with the same options.
"""

import sys

from unimoer.cli import main

if __name__ == "__main__":
    # Not an argument of main: results record sys.argv as the command that made them.
    sys.argv[1:1] = ["analyze"]
    main()
