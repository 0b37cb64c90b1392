"""The sources of pictures and texts: names that reveal data that both calibrate and evaluate a model."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

from ecoflap.data.image_in_memory import ImageInMemory

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
END = 64  # bytes
COCO_FILE = re.compile(r"(?:COCO_\w+_)?(\d{12})\.jpg")
TOKENS = "rows of token ids with the hash "
BYTES = re.compile(r": (\d+) bytes, (\w{32})$")


def coco_number(image: str) -> int | None:
    """COCO's number of a picture, from the name of its file; None for other pictures."""
    numbered = COCO_FILE.fullmatch(Path(image).name)
    return int(numbered[1]) if numbered else None


def picture_sources(images: Iterable[str | None]) -> frozenset[str]:
    """The sources of pictures: their files with links resolved, and COCO's numbers, which sets share.

    The source of a picture in memory is that of the bytes of its file, if they are known.
    """
    everything = {image for image in images if image}
    in_memory = {image for image in everything if isinstance(image, ImageInMemory)}
    given = everything - in_memory
    numbers = {number for image in given if (number := coco_number(image)) is not None}
    files = {os.path.realpath(Path(image).expanduser()) for image in given}
    held = {image.source for image in in_memory if image.source is not None}
    return frozenset([*files, *held, *(f"COCO's picture {number}" for number in numbers)])


def bytes_source(where: str, content: bytes) -> str:
    """The source of a picture in memory: its place, and what tells the bytes of its file from others."""
    return f"{where}: {len(content)} bytes, {_digest(content)}"


def is_picture(file: str) -> bool:
    """Whether a file is a picture by its name."""
    return file.lower().endswith(PICTURES)


def shared_source(some: Set[str], others: Set[str]) -> tuple[str, int] | None:
    """The first source that both have, and how many more they share; None if they share none."""
    shared = sorted(name for name in some & others if coco_number(name) is None)
    shown = [name for name in shared if not name.startswith(TOKENS)] or shared
    return (shown[0], len(shown) - 1) if shown else None


def copies(some: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """(one, other) pairs of pictures, texts or other files with the same bytes, under any names.

    Only files of equal size are read, their ends first, so that a hundred thousand pictures take little time.

    Args:
        some: sources; a picture may be in memory.
        others: sources, of which only files are looked at.
    """
    some = list(some)
    by_size: dict[int, list[str]] = defaultdict(list)
    for file, size in _sizes(some):
        by_size[size].append(file)
    held = {(int(known[1]), known[2]): name for name in sorted(some) if (known := BYTES.search(name))}
    sizes = {size for size, _ in held}
    found: list[tuple[str, str]] = []
    ends: dict[int, dict[bytes, list[str]]] = {}
    for file, size in _sizes(others):
        if size in sizes and (name := held.get((size, _digest(Path(file).read_bytes())))) is not None:
            found.append((name, file))
        if size not in by_size:
            continue
        if size not in ends:
            ends[size] = defaultdict(list)
            for one in by_size[size]:
                ends[size][_end(one)].append(one)
        alike = ends[size].get(_end(file), [])
        found += [(one, file) for one in alike if filecmp.cmp(one, file, shallow=False)][:1]
    return found


def _sizes(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """The names that are files, sorted, with their sizes; empty files are ignored."""
    for name in sorted(names):
        if os.path.isfile(name) and (size := os.path.getsize(name)):
            yield name, size


def _end(file: str) -> bytes:
    """The last bytes of a file, as pictures of one camera begin with the same bytes."""
    with open(file, "rb") as content:
        content.seek(max(0, os.path.getsize(file) - END))
        return content.read()


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def token_sources(path: str, key: str, rows: Tensor) -> frozenset[str]:
    """The names of token ids, [rows, tokens]: their place, and a hash of what another file may hold, too."""
    return file_source(path, key) | {f"{TOKENS}{_digest(rows.contiguous().numpy().data)}"}


def file_source(path: str, *parts: str) -> frozenset[str]:
    """The name of a file, or of a part of it."""
    return frozenset([" ".join([os.path.realpath(Path(path).expanduser()), *parts])])
