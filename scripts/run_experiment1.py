"""Experiment 1: specialists, one shared LoRA, routed experts and a hard task switch.

With `--quick` one seed and small samples, without it every seed of the full tier. The same as
`unimoer run experiment1`, with the same options.
"""

import sys

from unimoer.cli import main

if __name__ == "__main__":
    # Not an argument of main: results record sys.argv as the command that made them.
    sys.argv[1:1] = ["run", "experiment1"]
    main()
