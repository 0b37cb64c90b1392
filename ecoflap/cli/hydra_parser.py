"""Hydra's parser of command lines on Python 3.14."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def accepting_help_objects() -> Iterator[None]:
    """Let Hydra 1.3 make its parser in this context; from 3.14 on, argparse checks the help of each option.

    That of one option of Hydra is an object, which only becomes a text when it is shown.
    """
    if sys.version_info < (3, 14):
        yield
        return
    parser: type = argparse.ArgumentParser
    check = parser._check_help

    def check_text(self: argparse.ArgumentParser, action: argparse.Action) -> None:
        if isinstance(action.help, str):
            check(self, action)

    parser._check_help = check_text
    try:
        yield
    finally:
        parser._check_help = check
