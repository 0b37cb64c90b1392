"""What a picture or a text is called wherever it is read from, so that what calibrates a model can be told from what measures it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

COCO_FILE = re.compile(r"(?:COCO_\w+_)?(\d{12})\.jpg")


def coco_number(image: str) -> int | None:
    """COCO's number of a picture, by the name of its file; null for other pictures."""
    numbered = COCO_FILE.fullmatch(Path(image).name)
    return int(numbered[1]) if numbered else None


def picture_sources(images: Iterable[str | None]) -> frozenset[str]:
    """A name for each picture: COCO's number, whose pictures lie in the folders of many data sets, or else the file, links followed."""
    return frozenset(_picture(image) for image in set(images) if image)


def _picture(image: str) -> str:
    number = coco_number(image)
    return f"COCO's picture {number}" if number is not None else os.path.realpath(Path(image).expanduser())


def file_source(path: str, *parts: str) -> frozenset[str]:
    """The name of a file, or of a part of it."""
    return frozenset([" ".join([os.path.realpath(Path(path).expanduser()), *parts])])
