"""What tasks on raw examples share: subsets, batches, and hashes of all that their metrics depend on."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ecoflap.data.example import Example
from ecoflap.errors import UserError
from ecoflap.storage.results.metrics import STANDARD_ERROR

Item = TypeVar("Item")


def spread(items: Sequence[Item], limit: int | None, noun: str) -> list[Item]:
    """``limit`` items, evenly spaced over all; None for all of them.

    Args:
        items: the items of the data set.
        limit: number of items.
        noun: what they are, for the messages.

    Raises:
        UserError: if there are none, or fewer than ``limit``.
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


def commonest(answers: Iterable[Hashable]) -> float:
    """The accuracy in percent of giving the commonest answer each time; NaN without any."""
    counts = Counter(answers)
    return 100 * max(counts.values()) / counts.total() if counts else float("nan")


def error_of_mean(values: Sequence[float]) -> float:
    """The standard error of the mean of independent values, s / sqrt(n); NaN for fewer than two."""
    if len(values) < 2:
        return float("nan")
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def percent_errors(items: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The standard errors, in percent, of metrics that are means of their items' scores."""
    return {f"{name}{STANDARD_ERROR}": 100 * error_of_mean(values) for name, values in items.items()}


def interface_settings(interface: Any, brief: bool = True) -> bytes:
    """What a model's interface adds to every input: its prompt, the first token of a text, and how images are
    processed.

    Args:
        interface: the model's interface.
        brief: whether the text that follows each example's question is part of it.
    """
    names = ("prompt", "encoder_token", *(["brief"] if brief else []), "images")
    return f"{[getattr(interface, name, None) for name in names]!r}\n".encode()


def fingerprint(examples: Sequence[Example], interface: Any) -> str:
    """A hash of the examples, including their images, and of what the interface adds to them."""
    rows = ((one.text, one.target, one.label, one.bare) for one in examples)
    images = (path for one in examples for path in (one.image, one.second_image))
    return fingerprint_of(rows, images, interface)


def fingerprint_of(rows: Iterable[Any], images: Iterable[str | None], interface: Any) -> str:
    """A hash of the inputs, the contents of their images, and what the interface adds to them.

    Args:
        rows: inputs and targets, as values whose ``repr`` is complete.
        images: paths of the images, of which the contents alone count; None where an input has none.
        interface: the model's interface.

    Raises:
        UserError: if an image is missing.
    """
    digest = hashlib.blake2b(interface_settings(interface), digest_size=16)
    for row in rows:
        digest.update(f"{row!r}\n".encode())
    for image in images:
        digest.update(b"none" if image is None else _contents(image))
    return digest.hexdigest()


def _contents(image: str) -> bytes:
    """A hash of an image's file, which is read again only if it has changed since."""
    try:
        state = Path(image).stat()
    except OSError:
        raise UserError(
            f"the picture {image} is not there; check the folder that holds the data set's images"
        ) from None
    return _contents_then(image, state.st_mtime_ns, state.st_size)


@cache
def _contents_then(image: str, time: int, size: int) -> bytes:
    """A hash of an image's file, as it was at some time, of some size."""
    return hashlib.sha256(Path(image).read_bytes()).digest()
