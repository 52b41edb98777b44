"""python -m penstock"""

from __future__ import annotations

import sys

from penstock.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
