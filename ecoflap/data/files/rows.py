"""Rows of files: what a reader gives, and which files a path names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Protocol

from ecoflap.data.folder import files_below
from ecoflap.data.splits import WORDS, split_of
from ecoflap.errors import UserError


@dataclass(frozen=True)
class Row:
    """A row as it is in its file.

    Attributes:
        where: its file and place, for messages.
        values: its values by column.
        folder: the folder that paths of its pictures start from.
        classes: the names of the classes that its label numbers; empty if the file has none.
    """

    where: str
    values: Mapping[str, Any]
    folder: Path
    classes: tuple[str, ...] = ()


class Rows(Protocol):
    """The rows of files; none is read before it is asked for."""

    def __len__(self) -> int: ...

    def read(self, places: Sequence[int]) -> list[Row]:
        """The rows at these places, in this order.

        Raises:
            UserError: if a row can't be read.
        """


def find_files(path: str | None, split: str, endings: Sequence[str], name: str) -> list[Path]:
    """The files that a path names, sorted.

    Args:
        path: a file, a folder of files, or a pattern.
        split: of the files in a folder, or of those that fit a pattern and tell several splits, those that
            belong to this split, where their names say it.
        endings: of the names of such files.
        name: the name of the calibration, for messages.

    Raises:
        UserError: if there are none, or none of the split.
    """
    shown = ", ".join(f"*{ending}" for ending in endings)
    if path is None:
        raise UserError(
            f"calibration={name} needs calibration.path=FILE: a file, a folder or a pattern of {shown}"
        )
    place = Path(path).expanduser()
    if place.is_file():
        if not place.name.lower().endswith(tuple(endings)):
            raise UserError(
                f"calibration.path={path}: calibration={name} reads {shown}; give such a file, or choose"
                " another calibration: chat reads JSON, parquet Parquet and webdataset tar"
            )
        return [place]
    if not place.is_dir():
        found = [Path(one) for one in sorted(glob(str(place), recursive=True)) if Path(one).is_file()]
        if not found:
            raise UserError(f"calibration.path={path}: there is no such file or folder, and no file fits it")
        if split not in WORDS:
            return _of_split(found, Path(place.anchor), split)
        root = Path(os.path.commonpath([file.parent for file in found]))
        told = {split_of(str(file.relative_to(root))) for file in found}
        return found if len(told) == 1 else _of_split(found, root, split)
    found = sorted(files_below(place, lambda name: name.lower().endswith(tuple(endings))))
    if not found:
        held = ", ".join(sorted(one.name for one in place.iterdir())[:8]) or "nothing"
        raise UserError(
            f"calibration.path={path}: the folder holds no {shown}, but {held}; give another folder"
        )
    return _of_split(found, place, split)


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    """The files of a split, or with such a part in their paths; all of them where no path tells a split.

    Raises:
        UserError: if there are none.
    """
    paths = {file: str(file.relative_to(folder)) for file in files}
    told = {file: split_of(path) for file, path in paths.items()}
    if split in WORDS:
        if not any(told.values()):
            return files
        chosen = [file for file in files if told[file] == split_of(split)]
    else:
        part = re.compile(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])")
        chosen = [file for file in files if part.search(paths[file].lower())]
    if not chosen:
        splits = ", ".join(sorted({of for of in told.values() if of})) or "no names that tell a split"
        raise UserError(
            f"calibration.split={split}: the folder {folder} has {splits}; choose one of its splits, or a"
            " part of the names of its files"
        )
    return chosen
