"""What tasks on raw examples share: how many, in which batches, and what their numbers depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ecoflap.data.example import Example
from ecoflap.errors import UserError

Item = TypeVar("Item")


def spread(items: Sequence[Item], limit: int | None, noun: str) -> list[Item]:
    """``limit`` items, evenly spaced over all; all where it is null.

    Raises:
        UserError: there are none, or not so many.
    """
    if not items:
        raise UserError(
            f"task: the data hold no {noun}; look at the files that task.path names, and at task.split where"
            " there is one"
        )
    if limit is None:
        return list(items)
    if limit > len(items):
        raise UserError(
            f"task.limit={limit}: there are {len(items)} {noun}; choose 1 to {len(items)}, or null for all"
        )
    return [items[index * len(items) // limit] for index in range(limit)]


def parts(items: Sequence[Item], size: int) -> list[list[Item]]:
    """The items in batches of at most ``size``."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def percent(right: Sequence[bool]) -> float:
    """Share of true values, in percent."""
    return 100 * sum(right) / len(right) if right else float("nan")


def how_asked(interface: Any) -> bytes:
    """What a model's interface adds to whatever it is asked: its prompt, the token that a text begins
    with.
    """
    added = [getattr(interface, name, None) for name in ("prompt", "encoder_token", "brief")]
    return f"{added!r}\n".encode()


def fingerprint(examples: Sequence[Example], interface: Any) -> str:
    """A hash of the examples, their pictures included, and of how the model is asked."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(how_asked(interface))
    seen: set[str] = set()
    for example in examples:
        digest.update(f"{example.text!r} {example.target!r} {example.label} {example.bare}\n".encode())
        for path in filter(None, (example.image, example.second_image)):
            if path not in seen:
                seen.add(path)
                digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def fingerprint_by_size(rows: Iterable[Any], images: Iterable[str], interface: Any) -> str:
    """A hash of what is asked and of how, and of the pictures' names and sizes: to read all of COCO would
    take minutes.

    Args:
        rows: what is asked and what is right, as values with a ``repr`` that says everything.
        images: paths; the folder they are in does not count.
        interface: of the model.
    """
    digest = hashlib.blake2b(how_asked(interface), digest_size=16)
    for row in rows:
        digest.update(f"{row!r}\n".encode())
    for image in dict.fromkeys(images):
        digest.update(f"{Path(image).name} {Path(image).stat().st_size}\n".encode())
    return digest.hexdigest()
