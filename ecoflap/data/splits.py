"""The splits of a data set, as names of files and folders tell them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

from ecoflap.errors import UserError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "testdev", "devtest"),
}
"""{split: the words for it in names of files and folders}: those of ``datasets``, and two that join them."""
WORDS = tuple(word for words in SPLITS.values() for word in words)


def split_of(path: str) -> str | None:
    """The split that a path tells; None if it tells none.

    The outermost folder that tells one counts, and the file's name only where no folder does: as for
    ``datasets``, test/train-0.tar is a file of the test split.
    """
    part = telling(PurePath(path).parts)
    return None if part is None else _told(part)


def telling(parts: Iterable[str]) -> str | None:
    """The first part of a path that tells a split; None if none does."""
    return next((part for part in parts if _told(part) is not None), None)


def meant(split: str, names: Iterable[str]) -> set[str]:
    """The names that a split means: its own, else all that tell it, as val2017 tells validation."""
    known = set(names)
    if split in known or split not in WORDS:
        return known & {split}
    return {name for name in known if _told(name) == _told(split)}


def refuse_held_out(split: str) -> None:
    """Refuse calibration on a split that models are measured on.

    Raises:
        UserError: if it is one for validation or tests.
    """
    if _told(split) in ("validation", "test"):
        raise UserError(
            f"calibration.split={split}: models are measured on these pictures; choose train, or the name of"
            " another split"
        )


def _told(name: str) -> str | None:
    """The split that a name tells; None if it tells none, or training and another one.

    A name of the two others, such as test-dev, tells the test split.
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    told = [split for split, known in SPLITS.items() if words & set(known)]
    return None if not told or (len(told) > 1 and told[0] == "train") else told[-1]
