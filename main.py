"""The checkout's way in: ``python main.py`` is the same as ``ecoflap run``."""

import sys

from ecoflap.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
