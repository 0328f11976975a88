#!/usr/bin/env python3
"""The launcher: `run_sweep.py …` is `raysweep sweep …`."""

import sys

from raysweep.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
