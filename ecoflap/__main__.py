"""The command ``ecoflap``, as ``python -m ecoflap``."""

import sys

from ecoflap.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
