"""Experiment 1, the kill gate: do two specialists beat one adapter trained on both tasks?

The same as `unimoer run kill-gate`, with the same options.
"""

import sys

from unimoer.cli import main

if __name__ == "__main__":
    main(["run", "kill-gate", *sys.argv[1:]])
