"""Rows of JSON files: a row per line, or a list of rows."""

from __future__ import annotations

import gzip
import json
import mmap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecoflap.data.files.rows import Row
from ecoflap.data.folder import NOT_UTF8, UTF8, is_packed, parse_json
from ecoflap.errors import UserError


class JsonRows:
    """The rows of JSON files; of JSON lines, only those that are read are parsed."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Find where each row begins.

        Raises:
            UserError: if a file is neither JSON lines nor a list.
        """
        self._files = [(file, _opened(file)) for file in files]
        self._places = [
            (number, row) for number, (_, rows) in enumerate(self._files) for row in range(len(rows))
        ]

    def __len__(self) -> int:
        return len(self._places)

    def read(self, places: Sequence[int]) -> list[Row]:
        """See ``Rows``."""
        return [self._row(*self._places[place]) for place in places]

    def _row(self, number: int, place: int) -> Row:
        file, rows = self._files[number]
        where = f"{file}, {rows.where(place)}"
        try:
            values = rows[place]
        except UnicodeDecodeError:
            raise UserError(f"{where} {NOT_UTF8}") from None
        except ValueError as error:
            raise UserError(f"{where}: this is no JSON ({error}); mend it, or take it out") from None
        if not isinstance(values, dict):
            raise UserError(
                f"{where} is a {type(values).__name__}; a row is an object such as"
                ' {"image": ..., "conversations": [...]}'
            )
        return Row(where, values, file.parent)


class _Lines:
    """The lines of a file that hold anything."""

    def __init__(self, content: mmap.mmap | bytes) -> None:
        self._content = content
        self._lines: list[tuple[int, int, int]] = []  # number, from 1; first byte; last byte
        start, number = 0, 1
        while start < len(content):
            end = content.find(b"\n", start)
            end = len(content) if end < 0 else end
            if content[start:end].strip():
                self._lines.append((number, start, end))
            start, number = end + 1, number + 1

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, place: int) -> Any:
        _, start, end = self._lines[place]
        return parse_json(self._content[start:end].decode(UTF8))

    def where(self, place: int) -> str:
        return f"line {self._lines[place][0]}"


class _Entries:
    """The entries of a JSON list."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, place: int) -> Any:
        return self._entries[place]

    def where(self, place: int) -> str:
        return f"entry {place + 1}"


def _opened(file: Path) -> _Lines | _Entries:
    """The rows of a file.

    Raises:
        UserError: if it is damaged, or neither JSON lines nor a list.
    """
    content = _content(file)
    start = content[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[":
        try:
            return _Entries(parse_json(content[:].decode(UTF8)))
        except UnicodeDecodeError:
            raise UserError(f"{file} {NOT_UTF8}") from None
        except ValueError as error:
            raise UserError(
                f"{file} can't be read as JSON ({error}); mend it, or download it again"
            ) from None
    lines = _Lines(content)
    if start == b"{" and len(lines) > 1:
        _require_lines(file, content, lines)
    return lines


def _require_lines(file: Path, content: mmap.mmap | bytes, lines: _Lines) -> None:
    """Refuse one object over several lines, such as a dict of splits or COCO's annotations.

    Raises:
        UserError: if the file is one object.
    """
    try:
        lines[0]
    except ValueError:
        try:
            whole = json.loads(content[:].decode(UTF8))
        except ValueError:
            return  # the row that is read says what is wrong with it
        raise UserError(
            f"{file} is one object with {', '.join(list(whole)[:8])}; give a row per line, or a list of rows"
        ) from None


def _content(file: Path) -> mmap.mmap | bytes:
    """The bytes of a file, unpacked.

    Raises:
        UserError: if it is damaged.
    """
    if is_packed(file):
        try:
            return gzip.decompress(file.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{file} can't be unpacked ({error}); download it again") from None
    if not file.stat().st_size:
        return b""
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
