"""File layouts of captioned pictures: Karpathy's COCO and Flickr30k, NoCaps, CC3M and plain folders."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ecoflap.data.captions.listed import listed
from ecoflap.data.folder import files_below, read_json, read_text
from ecoflap.data.sources import coco_number
from ecoflap.data.splits import telling
from ecoflap.errors import UserError

ANYWHERE = "**/"
CSV = f"{ANYWHERE}metadata.csv"


@dataclass(frozen=True)
class Picture:
    """A picture with all its captions.

    Attributes:
        image: its file; relative to the data set's folder until it is located.
        captions: captions by annotators.
        split: its split of the data set.
        domain: in, near or out for NoCaps.
        key: its name in all data sets: COCO's number, or else the file relative to the data set's folder.
    """

    image: str
    captions: tuple[str, ...]
    split: str
    domain: str | None = None
    key: str = ""

    @classmethod
    def of(
        cls, image: str, captions: list[str], split: str, domain: str | None = None, key: str | None = None
    ) -> Picture:
        """A picture whose key is COCO's number, else the given one, else its file.

        Raises:
            TypeError: if a caption is no text.
        """
        if strange := [one for one in captions if not isinstance(one, str)]:
            raise TypeError(f"the caption {strange[0]!r} of {image} is no text")
        number = coco_number(image)
        return cls(image, tuple(captions), split, domain, (key or image) if number is None else str(number))


@dataclass(frozen=True)
class Layout:
    """Where a data set's files are.

    Attributes:
        wanted: its list of captions, as patterns below its folder, of which the first that fits is taken.
        folders: below its folder, where the pictures may be, beside the folder itself and ``images``.
        obtain: how to get it, as sentences.
        rows: the pictures that one such list names; its arguments are the list's file and the data set's
            folder.
    """

    wanted: tuple[str, ...]
    folders: tuple[str, ...]
    obtain: str
    rows: Callable[[Path, Path], Iterator[Picture]]

    def read(self, root: Path) -> list[Picture]:
        """Read all pictures that have captions.

        Raises:
            UserError: if a file does not have the format of the layout.
        """
        pictures: list[Picture] = []
        lists = self.lists(root)
        self._refuse_unread(lists, root)
        for file in lists:
            try:
                pictures += self.rows(file, root)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"{file} is not in the layout that was expected ({type(error).__name__}: {error})."
                    f" {self.obtain}"
                ) from None
        return [one for one in (_merged(pictures) if self._is_own else pictures) if one.captions]

    @property
    def _is_own(self) -> bool:
        """Whether it is a folder of one's own, in which several lists may lie."""
        return CSV in self.wanted

    def lists(self, root: Path) -> list[Path]:
        """The lists of captions in a folder, sorted."""
        found = (sorted(_matching(root, pattern)) for pattern in self.wanted)
        return next((files for files in found if files), [])

    def _refuse_unread(self, lists: list[Path], root: Path) -> None:
        """Refuse tables in folders of their own beside lists in JSON; a text there may be no caption.

        Raises:
            UserError: if there are any.
        """
        if not self._is_own or not lists or lists[0].suffix != ".jsonl":
            return
        unread = sorted({file.parent for file in _matching(root, CSV)} - {file.parent for file in lists})
        if unread:
            raise UserError(
                f"{unread[0]} has a metadata.csv, and {lists[0].parent} a metadata.jsonl, and lists of one"
                " kind alone are read; give all in one, or take the other ones out"
            )


def _merged(pictures: list[Picture]) -> list[Picture]:
    """The pictures, each once in a split, with the captions of all rows and lists that name it."""
    found: dict[tuple[str, str], Picture] = {}
    for one in pictures:
        place = (os.path.normpath(one.image), one.split)
        before = found.get(place)
        found[place] = replace(before, captions=before.captions + one.captions) if before else one
    return list(found.values())


def _matching(root: Path, pattern: str) -> Iterator[Path]:
    """The files that fit a pattern: of that name anywhere below the folder if it begins with ``**/``."""
    name = pattern.removeprefix(ANYWHERE)
    if name == pattern:
        return root.glob(pattern)
    return files_below(root, lambda found: fnmatchcase(found, name))


def _karpathy(file: Path, root: Path) -> Iterator[Picture]:
    """Read Karpathy's split file, with train and restval both as train, as is usual."""
    for row in read_json(file)["images"]:
        split = "train" if row["split"] == "restval" else row["split"]
        yield Picture.of(
            str(Path(row.get("filepath", "")) / row["filename"]),
            [sentence["raw"] for sentence in row["sentences"]],
            split,
        )


def _nocaps(file: Path, root: Path) -> Iterator[Picture]:
    data = read_json(file)
    captions: dict[int, list[str]] = defaultdict(list)
    for row in data["annotations"]:
        captions[row["image_id"]].append(row["caption"])
    for row in data["images"]:
        yield Picture.of(row["file_name"], captions[row["id"]], "val", row["domain"].removesuffix("-domain"))


def _cc3m(file: Path, root: Path) -> Iterator[Picture]:
    for row in read_json(file):
        yield Picture.of(row["image"], [row["caption"]], "train")


def _cc3m_tsv(file: Path, root: Path) -> Iterator[Picture]:
    for line in filter(None, read_text(file).split("\n")):
        caption, image = line.split("\t")[:2]
        yield Picture.of(image, [caption], "train")


def _folder(file: Path, root: Path) -> Iterator[Picture]:
    """Read a folder like ``datasets``: each subfolder with captions is a split; else all is train.

    Captions are in a metadata.jsonl or metadata.csv, or in a text beside each picture, a line each. A picture
    below a folder whose name tells a split is of that one if its list lies in no other.
    """
    place = file.parent.relative_to(root)
    captions: dict[str, list[str]] = defaultdict(list)
    for name, texts in listed(file):
        captions[name] += [texts] if isinstance(texts, str) else texts
    for name, texts in captions.items():
        key = os.path.relpath(file.parent / name, root)  # the same however the list writes it
        folders = (*place.parts, *Path(key).parts[:-1])
        split = telling(folders) or (*place.parts, "train")[0]
        yield Picture.of(str(place / name), texts, split, key=key)


KARPATHY = "{} is in the caption_datasets.zip that Karpathy published with his splits"
CC3M = "Conceptual Captions gives addresses: download the pictures, and list those that came"

LAYOUTS = {
    "coco": Layout(
        ("dataset_coco.json",),
        (),
        f"{KARPATHY.format('dataset_coco.json')}; the pictures are COCO's train2014 and val2014.",
        _karpathy,
    ),
    "flickr30k": Layout(
        ("dataset_flickr30k.json",),
        ("flickr30k-images", "flickr30k_images"),
        f"{KARPATHY.format('dataset_flickr30k.json')}; the pictures are given for non-commercial research on"
        " asking the University of Illinois, with the form on the data set's page.",
        _karpathy,
    ),
    "nocaps": Layout(
        ("nocaps_val_4500_captions.json",),
        ("val", "images/val", "validation"),
        "nocaps_val_4500_captions.json is on the page of NoCaps; the pictures are of Open Images' validation"
        " set, at the addresses that it lists.",
        _nocaps,
    ),
    "cc3m": Layout(
        ("cc3m.json",), (), f'{CC3M} in cc3m.json: [{{"image": FILE, "caption": TEXT}}, ...].', _cc3m
    ),
    "cc3m_tsv": Layout(("cc3m.tsv",), (), f"{CC3M} in cc3m.tsv: caption, tab, file.", _cc3m_tsv),
    "folder": Layout(
        ("**/metadata.jsonl", CSV, "**/*.txt"),
        (),
        'Give a folder, or one per split, with pictures and a metadata.jsonl of {"file_name": FILE, "text":'
        " CAPTION OR LIST OF CAPTIONS} lines, a metadata.csv with such"
        " columns, or a NAME.txt beside each NAME.jpg.",
        _folder,
    ),
}
