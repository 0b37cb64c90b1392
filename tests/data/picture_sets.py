"""CoOp's eleven sets and folders of pictures in small: their published layouts, with Easy-VQA's pictures in
them.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

from ecoflap.data.classification.clip_sets import SETS
from ecoflap.data.easy_vqa.reading import NAMES, read_pictures
from ecoflap.data.example import Example

CLASSES = [name.replace(" ", "_") for name in NAMES]
COOP = sorted(set(SETS) - {"image_folder"})
COUNTS = {"train": 2, "val": 1, "test": 2}  # pictures per class


@cache
def easy_pictures(split: str) -> list[Example]:
    """All pictures of Easy-VQA's split."""
    return read_pictures(split)


@cache
def some_of_each(split: str) -> list[Example]:
    """Some pictures of each class; val's are other training pictures than train's."""
    pictures = easy_pictures("test" if split == "test" else "train")
    classes = [[picture for picture in pictures if picture.label == label] for label in range(len(NAMES))]
    count = COUNTS[split]
    return [picture for of_it in classes for picture in (of_it[-count:] if split == "val" else of_it[:count])]


def write_folders(root: Path, split: str, classes: list[str] = CLASSES) -> Path:
    """``root/split/class/picture``; the class folders are numbered by the names' order."""
    for number, picture in enumerate(some_of_each(split)):
        folder = root / split / classes[picture.label or 0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture.image or "", folder / f"{number}.png")
    return root


def write_set(root: Path, name: str) -> Path:
    """A set of CoOp below the folder of all sets."""
    facts = SETS[name]
    folder = root / facts.folder
    if name == "imagenet":
        numbers = [f"n{label:08d}" for label in range(len(CLASSES))]
        for split in ("train", "val"):
            write_folders(folder / "images", split, numbers)
        (folder / "classnames.txt").write_text(
            "".join(f"{number} {class_}\n" for number, class_ in zip(numbers, NAMES, strict=True))
        )
        return folder
    rows: dict[str, list[tuple[str, int, str]]] = {split: [] for split in COUNTS}
    for split in COUNTS:
        for number, picture in enumerate(some_of_each(split)):
            file = folder / facts.images / f"{split}_{number:04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture.image or "", file)
            rows[split].append((file.name, picture.label or 0, CLASSES[picture.label or 0]))
    _write_splits(folder, str(facts.splits), rows)
    return folder


def _write_splits(folder: Path, splits: str, rows: dict[str, list[tuple[str, int, str]]]) -> None:
    if splits.endswith(".json"):
        (folder / splits).write_text(json.dumps(rows))
        return
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for split, of_it in rows.items():
        lines = [f"{file.removesuffix('.jpg')} {name.replace('_', ' ')}\n" for file, _, name in of_it]
        (folder / splits.format(split=split)).write_text("".join(lines))
