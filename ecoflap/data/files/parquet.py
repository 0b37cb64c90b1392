"""Rows of Parquet files, as ``datasets`` and the hub store them."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.data.files.rows import Row
from ecoflap.errors import UserError

ENDINGS = (".parquet",)


@dataclass(frozen=True)
class _Group:
    """A row group of a file, the smallest part that is read.

    Attributes:
        file: its place among the files.
        number: its place in the file.
        first: number of its first row in the file.
    """

    file: int
    number: int
    first: int


class ParquetRows:
    """The rows of Parquet files; only the row groups of the rows that are asked for are read."""

    def __init__(self, files: Sequence[Path], label_column: str) -> None:
        """Read how many rows each row group holds, and the names of the classes in a column of labels.

        Raises:
            UserError: if a file is no Parquet.
        """
        self._files, self._opened = list(files), [_opened(file) for file in files]
        self._classes = [_class_names(one.schema_arrow.metadata, label_column) for one in self._opened]
        self._groups: list[_Group] = []
        self._starts: list[int] = []
        total = 0
        for number, opened in enumerate(self._opened):
            first = 0
            for group in range(opened.metadata.num_row_groups):
                self._groups.append(_Group(number, group, first))
                self._starts.append(total + first)
                first += opened.metadata.row_group(group).num_rows
            total += first
        self._total = total

    def __len__(self) -> int:
        return self._total

    def read(self, places: Sequence[int]) -> list[Row]:
        """See ``Rows``; each row group is read once."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for place in places:
            wanted[bisect_right(self._starts, place) - 1].append(place)
        found = {}
        for group, inside in sorted(wanted.items()):
            for place, values in zip(inside, self._values(group, inside), strict=True):
                of = self._groups[group]
                file, row = self._files[of.file], place - self._starts[group] + of.first + 1
                found[place] = Row(f"{file}, row {row}", values, file.parent, self._classes[of.file])
        return [found[place] for place in places]

    def _values(self, group: int, places: Sequence[int]) -> list[dict[str, Any]]:
        """The values of rows of one row group."""
        of = self._groups[group]
        try:
            table = self._opened[of.file].read_row_group(of.number)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._files[of.file]}: row group {of.number} can't be read ({error}); download it again"
            ) from None
        rows: list[dict[str, Any]] = table.take([place - self._starts[group] for place in places]).to_pylist()
        return rows


def _class_names(metadata: Mapping[bytes, bytes] | None, label_column: str) -> tuple[str, ...]:
    """The names of the classes in a column of labels, where ``datasets`` wrote the file; else none."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(map(str, features[label_column]["names"]))
    except (KeyError, TypeError, ValueError):  # of a column of numbers, or of another writer
        return ()


def _opened(file: Path) -> Any:
    """The file with its metadata read.

    Raises:
        UserError: if it is no Parquet.
    """
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as Parquet ({error}); download it again") from None
