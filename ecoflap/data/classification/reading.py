"""Pictures with their classes, from CoOp's split files or from a folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ecoflap.data.classification.class_names import (
    OPENAI,
    PACKAGES,
    WORDNET,
    class_lines,
    name_classes,
    openai_templates,
    own_labels,
    require_wordnet,
    spaced,
)
from ecoflap.data.classification.clip_sets import PictureSet, find_set
from ecoflap.data.classification.options import PictureSourceOptions
from ecoflap.data.example import Example
from ecoflap.data.folder import is_hidden, read_json, require_file, text_lines
from ecoflap.data.sources import is_picture
from ecoflap.data.splits import WORDS, split_of
from ecoflap.errors import UserError

OBTAIN = "DATASETS.md of CoOp (https://github.com/KaiyangZhou/CoOp) says where to get its files."
ARRANGE = "A split is a folder with a folder of pictures per class in it; without such folders, all is train."
IMAGENET = (
    "ImageNet is given for non-commercial research, after signing in, at image-net.org"
    " (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar). Unpack it as imagenet/images/train and"
    " imagenet/images/val with a folder per class (n01440764, ...); torchvision.datasets.ImageNet sorts the"
    " validation pictures so."
)


@dataclass(frozen=True)
class Pictures:
    """The pictures of one split.

    Attributes:
        examples: examples with the index of their class as label, and its name as target.
        names: names of the classes, in the order of the labels.
    """

    examples: list[Example]
    names: tuple[str, ...]

    def labels_in(self, own: Sequence[str], asked: str, indexed: bool) -> dict[int, int]:
        """{label: index among a classifier's own classes}, of the classes that the pictures show.

        Args:
            own: names of the classifier's classes.
            asked: the option, for messages.
            indexed: whether both have the same order, whatever the names.

        Raises:
            UserError: if the classifier has other classes.
        """
        shown = {one.label or 0 for one in self.examples}
        labels = [label for label in range(len(self.names)) if indexed or label in shown]
        names = [self.names[label] for label in labels]
        return dict(zip(labels, own_labels(own, names, asked, indexed), strict=True))


class Found(NamedTuple):
    """The contents of a set's files: a folder, (picture, label) of each picture, and names of classes."""

    root: Path
    pictures: list[tuple[str, int]]
    classes: Sequence[str]


@dataclass(frozen=True)
class PictureSource(PictureSourceOptions):
    """A picture set, with the names of its classes."""

    def facts(self, option: str) -> PictureSet:
        """The facts about the set.

        Raises:
            UserError: if there is no such set.
        """
        return find_set(self.dataset, option)

    def check_data(self, option: str) -> None:
        """Refuse pictures that aren't listed, or whose classes have no names.

        Raises:
            UserError: if pictures aren't listed, or their classes have no names.
        """
        if not self.read(option, named=False).examples:
            raise UserError(
                f"{option}={self.dataset}: the split {self.split} lists no pictures; give another"
                f" {option}.split or path"
            )

    def prompts(self, option: str) -> tuple[str, ...]:
        """All templates, with OpenAI's expanded.

        Raises:
            UserError: if they include OpenAI's, and the package with them is not installed.
        """
        asked = [self.facts(option).prompt] if self.templates is None else self.templates
        return tuple(
            one
            for template in asked
            for one in (openai_templates(option) if template == OPENAI else [template])
        )

    def read(self, option: str, named: bool, indexed: bool = False) -> Pictures:
        """Read all pictures of the split.

        Args:
            option: the config group of the part, for messages.
            named: whether the classes need meaningful names.
            indexed: whether a classifier takes the place of a sorted folder for the index of its class.

        Raises:
            UserError: if files are missing or not in the set's layout, or the classes have no names, or no
                known order.
        """
        splits = self.facts(option).splits
        reader = self._folders
        if splits is not None:
            reader = self._split_file if splits.endswith(".json") else self._aircraft
        found = reader(option)
        if indexed or self.classes in PACKAGES:
            require_wordnet(found.classes, f"{option}={self.dataset}", option)
        names, labels = self._names(found.classes, option, named)
        examples = [
            Example(target=names[labels[label]], image=str(found.root / file), label=labels[label])
            for file, label in found.pictures
        ]
        return Pictures(examples, tuple(names))

    def _names(self, found: Sequence[str], option: str, named: bool) -> tuple[list[str], list[int]]:
        """The names of the classes, and the name's index for each class in the files."""
        if self.classes is None or (self.classes in PACKAGES and not named):
            if named and all(WORDNET.fullmatch(name) for name in found):
                raise UserError(
                    f"{option}={self.dataset}: the folders are WordNet's numbers; name them by"
                    f" {option}.classes=open_clip, or =FILE"
                )
            return [spaced(name) for name in found], list(range(len(found)))
        return name_classes(found, class_lines(self.classes, option), f"{option}.classes={self.classes}")

    def _folders(self, option: str) -> Found:
        """A folder per split and class, in torchvision's order; the classes are those of all splits."""
        from torchvision.datasets.folder import find_classes, make_dataset

        root = self._split_folder(option)

        def shows(file: str) -> bool:
            return is_picture(file) and not is_hidden(Path(file), root)

        try:
            own = [name for name in find_classes(str(root))[0] if not name.startswith(".")]
            classes = sorted({*own, *self._classes_beside(root)})
            files = make_dataset(str(root), {name: classes.index(name) for name in own}, is_valid_file=shows)
        except (FileNotFoundError, ValueError) as error:  # a ValueError if all folders are hidden
            raise UserError(f"{option}={self.dataset}: {error}. {ARRANGE}") from None
        return Found(root, [(os.path.relpath(file, root), label) for file, label in files], classes)

    def _classes_beside(self, split: Path) -> set[str]:
        """The class folders in the splits beside a split's folder, which may have none of a rare class."""
        if self.path is None or split == Path(self.path).expanduser():
            return set()
        others = [one for one in split.parent.iterdir() if one.is_dir() and split_of(one.name) is not None]
        found = {folder.name for other in others for folder in other.iterdir() if folder.is_dir()}
        return {name for name in found if not name.startswith(".")}

    def _split_folder(self, option: str) -> Path:
        """The folder with the folder of each class.

        Raises:
            UserError: if it is missing, or the split is not a name.
        """
        facts = self.facts(option)
        if self.split in ("", "..") or Path(self.split).name != self.split:
            raise UserError(
                f"{option}.split={self.split} is not the name of a split; choose one such as train. {ARRANGE}"
            )
        if self.path is not None and self.split == "train" and self._holds_classes(Path(self.path)):
            return Path(self.path).expanduser()
        inside = Path(facts.folder) / facts.images / self.split
        place = next(
            (one for one in (inside, Path(facts.images) / self.split, Path(self.split)) if self._has(one)),
            inside,
        )
        obtain = IMAGENET if self.dataset == "imagenet" else ARRANGE
        return require_file(self.path, str(place), option, self.dataset, obtain)

    def _holds_classes(self, path: Path) -> bool:
        """Whether it is a folder of one's own with the folders of classes, and none of a split, in it."""
        root = path.expanduser()
        return (
            self.dataset == "image_folder"
            and not any((root / split).exists() for split in WORDS)
            and any(is_picture(file.name) and not is_hidden(file, root) for file in root.glob("*/*"))
        )

    def _split_file(self, option: str) -> Found:
        """CoOp's JSON file: {split: [[picture, label, class], ...]}."""
        file, images = self._coop_files(option)
        content = read_json(file)
        if self.split not in content:
            raise UserError(
                f"{option}.split={self.split} is not in {file.name}; choose one of {', '.join(content)}"
            )
        try:
            named = {(int(label), name) for rows in content.values() for _, label, name in rows}
            classes = dict(sorted(named))
        except (TypeError, ValueError):
            raise UserError(
                f"{file} holds no rows of picture, label and class; download it again. {OBTAIN}"
            ) from None
        if len(classes) != len(named):
            label, name = min(one for one in named if classes[one[0]] != one[1])
            raise UserError(
                f"{file}: its label {label} is both {name} and {classes[label]}; number the classes alike in"
                f" all splits, or download it again. {OBTAIN}"
            )
        if list(classes) != list(range(len(classes))):
            raise UserError(
                f"{file}: its labels are not 0 to {len(classes) - 1}; download it again. {OBTAIN}"
            )
        return Found(
            images,
            [(picture, int(label)) for picture, label, _ in content[self.split]],
            list(classes.values()),
        )

    def _aircraft(self, option: str) -> Found:
        """Read FGVC-Aircraft's files: the names of the variants, and per split lines "PICTURE VARIANT"."""
        file, images = self._coop_files(option)
        variants = text_lines(require_file(str(file.parent), "variants.txt", option, self.dataset, OBTAIN))
        rows = [(picture, name) for picture, _, name in (line.partition(" ") for line in text_lines(file))]
        if strange := [row for row in rows if row[1] not in variants]:
            raise UserError(
                f"{file}: {' '.join(strange[0])!r} names no variant of variants.txt; download both again."
                f" {OBTAIN}"
            )
        label_of = {name: label for label, name in enumerate(variants)}
        return Found(images, [(f"{picture}.jpg", label_of[name]) for picture, name in rows], variants)

    def _coop_files(self, option: str) -> tuple[Path, Path]:
        """The file that lists the split, and the folder of the pictures."""
        facts = self.facts(option)
        name = str(facts.splits).format(split=self.split)
        folder = Path() if self._has(Path(name)) else Path(facts.folder)
        file = require_file(self.path, str(folder / name), option, self.dataset, OBTAIN)
        return file, file.parent / facts.images

    def _has(self, place: Path) -> bool:
        return self.path is not None and (Path(self.path).expanduser() / place).exists()
