"""NLVR2 as it is published: is a sentence true of two photographs?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ecoflap.data.example import Example
from ecoflap.data.folder import parse_json, read_text, require_file
from ecoflap.errors import UserError

SPLITS = ("train", "dev", "test1")
LABELS = {"True": 1, "False": 0}
OBTAIN = (
    "NLVR2's train.json, dev.json and test1.json are in nlvr2/data of github.com/lil-lab/nlvr, whose README"
    " says how to get the pictures: for research only, as folders train, dev and test1, or the same in a"
    " folder images."
)


def check_splits(splits: Sequence[str], option: str) -> None:
    """Refuse splits that are not published.

    Raises:
        UserError: if there is one, or there are no splits.
    """
    if not splits or any(split not in SPLITS for split in splits):
        raise UserError(
            f"{option}={list(splits)}: choose among {', '.join(SPLITS)}; test2 is kept by its authors"
        )


def read_pairs(folder: str | None, split: str, option: str) -> list[Example]:
    """Read all sentences of a split with their left and right picture; label 1 is true.

    Pictures are never swapped at random, so metrics are deterministic.

    Args:
        folder: the folder of the JSON files and the pictures.
        split: train, dev or test1.
        option: the config group of the part, for messages.

    Raises:
        UserError: if the split is missing, or not in the published format.
    """
    file = require_file(folder, f"{split}.json", option, "nlvr2", OBTAIN)
    place = _places(file.parent, split)
    lines = enumerate(read_text(file).split("\n"), start=1)
    pairs = [_pair(line, place, f"{file}, line {number}") for number, line in lines if line.strip()]
    if not pairs:
        raise UserError(f"{file} holds no sentences; download it again. {OBTAIN}")
    return pairs


def _pair(line: str, place: Callable[[Any], Path], where: str) -> Example:
    try:
        entry = parse_json(line)
        stem = entry["identifier"].rsplit("-", 1)[0]  # the last number counts the sentences about one pair
        pictures = place(entry.get("directory")) / stem
        return Example(
            entry["sentence"],
            image=f"{pictures}-img0.png",
            second_image=f"{pictures}-img1.png",
            label=LABELS[str(entry["label"])],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where}: expected a JSON object with identifier, sentence and label (True or False),"
            f" {type(error).__name__}: {error}. {OBTAIN}"
        ) from None


def _places(root: Path, split: str) -> Callable[[Any], Path]:
    """The paths of a directory's pictures, which are in numbered subfolders in train only."""

    @cache
    def place(directory: int | str | None) -> Path:
        tops = (root / "images" / split, root / split)
        inner = [] if directory is None else [top / str(directory) for top in tops]
        return next((folder for folder in (*inner, *tops) if folder.is_dir()), tops[0])

    return place
