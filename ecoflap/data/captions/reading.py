"""Read captioned pictures from a local folder, and keep calibration and evaluation apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ecoflap.data.captions.layouts import LAYOUTS, Picture
from ecoflap.data.captions.options import CaptionSourceOptions
from ecoflap.data.folder import require_files, require_images
from ecoflap.data.splits import meant
from ecoflap.errors import UserError, did_you_mean

MARKS = re.compile(r'[.!"()*#:;~]')
MOST_WORDS = 50


@dataclass(frozen=True)
class CaptionSource(CaptionSourceOptions):
    """A local folder of captioned pictures."""

    def pictures(self, group: str, apart: bool = False) -> list[Picture]:
        """The pictures of the split, in the data set's order.

        Args:
            group: the config group of the part, for messages.
            apart: refuse a split that shares a picture with another one.

        Raises:
            UserError: if the data set, the split or its pictures are missing.
        """
        root = self.locate(group)
        listed = LAYOUTS[self.layout].read(root)
        splits = meant(self.split, (one.split for one in listed))
        chosen = [one for one in listed if one.split in splits]
        if not chosen:
            raise UserError(
                f"{group}.split={self.split}: {self.path} has"
                f" {', '.join(sorted({one.split for one in listed})) or 'no captions'}"
            )
        if apart:
            require_apart(chosen, (one for one in listed if one.split not in splits), f"{group}={self.name}")
        return self._located(chosen, root, group)

    def locate(self, group: str) -> Path:
        """The folder of the data set.

        Raises:
            UserError: if its list of captions is missing, or the layout is unknown.
        """
        if self.layout not in LAYOUTS:
            raise UserError(
                f"{group}.layout={self.layout} is not a layout of captions;"
                f" {did_you_mean(self.layout, LAYOUTS)}"
            )
        layout = LAYOUTS[self.layout]
        if self.path is not None and (root := Path(self.path).expanduser()).is_dir() and layout.lists(root):
            return root
        return require_files(self.path, layout.wanted[0], group, self.name, layout.obtain)

    def present(self, pictures: list[Picture], group: str) -> list[Picture]:
        """The pictures, once all of their files are found.

        Raises:
            UserError: if files are missing.
        """
        require_images((one.image for one in pictures), f"{group}={self.name}", LAYOUTS[self.layout].obtain)
        return pictures

    def _located(self, pictures: list[Picture], root: Path, group: str) -> list[Picture]:
        """The pictures with absolute paths, in the folder in which the first one is found."""
        places = [root / folder for folder in ("", "images", *LAYOUTS[self.layout].folders)]
        for place in places:
            if (place / pictures[0].image).is_file():
                return [replace(one, image=str(place / one.image)) for one in pictures]
        looked = ", ".join(map(str, places))
        raise UserError(
            f"{group}={self.name}: the picture {pictures[0].image} is not in any of {looked}."
            f" {LAYOUTS[self.layout].obtain}"
        )


def require_apart(used: Iterable[Picture], measured: Iterable[Picture], option: str) -> None:
    """Refuse calibration pictures that tasks evaluate.

    Raises:
        UserError: if there are any.
    """
    both = sorted({one.key for one in used} & {one.key for one in measured})
    if both:
        raise UserError(
            f"{option}: {len(both)} of its pictures are in another split too, such as {both[0]}; a model must"
            " not be measured on them"
        )


def clean(caption: str) -> str:
    """A caption as BLIP and BLIP-2 read it: lower-cased, without most marks, at most 50 words."""
    return " ".join(MARKS.sub(" ", caption.lower()).split()[:MOST_WORDS])
