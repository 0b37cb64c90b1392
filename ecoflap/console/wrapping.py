"""Lines that fit the width of the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TextIO


def wrapped(text: str, stream: TextIO) -> str:
    """Break lines between words where they are longer than the terminal; elsewhere they stay whole.

    Continued lines are indented. Paths and commands without spaces are not broken.

    Args:
        text: the lines.
        stream: where they will be printed.
    """
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(_broken(line, width) if len(line) > width else line for line in text.split("\n"))


def paragraphs(text: str) -> str:
    """Text for stdout whose paragraphs fill the lines of the terminal; indented lines stay on their own."""
    width = shutil.get_terminal_size().columns
    return "\n\n".join(
        wrapped(part, sys.stdout)
        if part.startswith(" ")
        else textwrap.fill(" ".join(part.split()), width, break_long_words=False, break_on_hyphens=False)
        for part in text.strip("\n").split("\n\n")
    )


def _broken(line: str, width: int) -> str:
    """A line broken between words; what follows is indented two columns deeper."""
    deeper = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, width, subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False
    )
