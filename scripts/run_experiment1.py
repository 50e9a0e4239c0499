"""Experiment 1, the kill gate: do two specialists beat one adapter trained on both tasks?

The same as `unimoer run kill-gate`, with the same options.
"""

import sys

from unimoer.cli import main

if __name__ == "__main__":
    # Not an argument of main: results record sys.argv as the command that made them.
    sys.argv[1:1] = ["run", "kill-gate"]
    main()
