"""Captions in a list of pictures, JSON lines or CSV, or in a text beside each picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecoflap.data.folder import parse_json, read_text, text_lines
from ecoflap.data.sources import PICTURES


def listed(file: Path) -> Iterator[tuple[str, list[str]]]:
    """(picture, captions) of a list, or of a text beside a picture; other texts may lie there as well.

    Raises:
        ValueError: if a line of a list holds no picture with its captions, or the text beside one is empty.
    """
    if file.suffix == ".txt":
        beside = (
            file.with_suffix(ending) for small in PICTURES for ending in (small, small.upper(), small.title())
        )
        picture = next((one for one in beside if one.is_file()), None)
        if picture is not None:
            texts = text_lines(file)
            if not texts:
                raise ValueError(f"it is empty; write a caption of {picture.name}, or take both out")
            yield picture.name, texts
        return
    for line, row in rows_of(file):
        try:
            found = [row["text"]] if isinstance(row["text"], str) else row["text"]
            texts = found if isinstance(found, list) else []
            if not texts or not all(isinstance(one, str) and one.strip() for one in texts):
                raise ValueError("it has no text")
            yield row["file_name"], texts
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"line {line}: {type(error).__name__}: {error}") from None


def rows_of(file: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of JSON lines or CSV.

    Raises:
        ValueError: if a line is no JSON, or quotes are missing in CSV, so that cells begin or end elsewhere.
    """
    if file.suffix == ".csv":
        yield from _table(read_text(file))
        return
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            yield number, parse_json(line)


def _table(text: str) -> Iterator[tuple[int, Any]]:
    """(last line, row) of CSV; see ``rows_of``."""
    reader, first = csv.DictReader(io.StringIO(text, newline=""), strict=True), 2
    try:
        for row in reader:
            if any(row.get(None, ())):
                raise ValueError(f"line {first} has more cells than the header; quote texts with commas")
            yield reader.line_num, row
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"line {first}: {error}; close each quote before a comma or the end of the line, and write those"
            " within a text twice"
        ) from None
