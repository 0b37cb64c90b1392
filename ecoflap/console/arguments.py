"""The argument parser of the commands, and how they report wrong usage."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from ecoflap.console.wrapping import paragraphs, wrapped


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, with help that fits the terminal, and an error message instead of the usage."""

    def __init__(self, *, description: str | None = None, **options: Any) -> None:
        """Begin without arguments.

        Args:
            description: paragraphs, which fill the lines, and indented lines.
            options: those of argparse.
        """
        super().__init__(
            description=description and paragraphs(description),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit with 2."""
        self.exit(complain(f"{message}; {self.prog} --help shows the usage"))


def given_path(text: str) -> Path:
    """The path that an argument names; after ``--output=``, the shell leaves a ~ as it is."""
    return Path(text).expanduser()


def complain(message: object) -> int:
    """Print a one-line error to stderr; returns the exit code of wrong usage."""
    print(wrapped(f"error: {' '.join(str(message).split())}", sys.stderr), file=sys.stderr)
    return 2
