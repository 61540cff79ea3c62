"""The one command: `python bench.py --methods kd,crd,icd --pairs all`. See `python bench.py --help`."""

import sys

from kdbench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
