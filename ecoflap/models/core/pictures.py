"""Pictures from files, prepared for a model once and kept for the next question about them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecoflap.errors import UserError

KEPT = 512


class PictureInMemory(str):
    """A picture that stands where others have their path; as a text, it is a hash of what it shows.

    Attributes:
        picture: as Pillow has it.
    """

    picture: Any

    def __new__(cls, picture: Any) -> PictureInMemory:
        """Take a picture of Pillow's."""
        shown = f"{picture.mode} {picture.size}".encode() + picture.tobytes()
        self = super().__new__(
            cls, f"a picture in memory {hashlib.blake2b(shown, digest_size=16).hexdigest()}"
        )
        self.picture = picture
        return self


def load_image(path: str) -> Any:
    """An RGB picture, from a file or from memory.

    Raises:
        UserError: the file is missing or no picture.
    """
    from PIL import Image

    try:
        if isinstance(path, PictureInMemory):
            return _in_colour(path.picture)
        with Image.open(path) as file:
            return _in_colour(file)
    # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error,
    # DecompressionBombError
    except Exception as error:
        raise UserError(
            f"the picture {path} cannot be read ({error}); check the folder that holds the data set's images"
        ) from None


def _in_colour(picture: Any) -> Any:
    return (_eight_bits(picture) if picture.mode.startswith("I") else picture).convert("RGB")


def _eight_bits(picture: Any) -> Any:
    """A picture of 16-bit grey in 8 bits; Pillow would show everything above 255 as white. One in 32 bits may
    hold no more than 8.
    """
    from PIL import Image

    values = np.asarray(picture).clip(0, 65535)
    return Image.fromarray(
        (values // 256 if picture.mode != "I" or values.max(initial=0) > 255 else values).astype(np.uint8)
    )


class Pixels:
    """Pixel values by path; the last few hundred pictures are remembered, because data sets ask many
    questions about each.
    """

    def __init__(self, prepare: Callable[[Any], Tensor]) -> None:
        """``prepare`` makes one picture's pixel values [3, height, width]."""
        self.prepare = prepare
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def of(cls, image_processor: Any) -> Pixels:
        """Pixels as an image processor of transformers makes them."""
        return cls(lambda image: image_processor(images=image, return_tensors="pt")["pixel_values"][0])

    def __call__(self, paths: Sequence[str]) -> Tensor:
        """[pictures, 3, height, width]."""
        return torch.stack([self._one(path) for path in paths])

    def _one(self, path: str) -> Tensor:
        if path not in self._kept:
            self._kept[path] = self.prepare(load_image(path))
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(path)
        return self._kept[path]
