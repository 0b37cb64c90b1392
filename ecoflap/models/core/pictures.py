"""Images from files, preprocessed once per model and cached: data sets ask several questions about each."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecoflap.data.image_in_memory import ImageInMemory, upright
from ecoflap.errors import UserError

CACHED = 512  # images


def load_image(path: str | None) -> Any:
    """Read an RGB image, from a file (turned as its EXIF says) or from memory.

    Raises:
        UserError: if there is none, or the file is missing or not an image.
    """
    from PIL import Image

    if path is None:
        raise UserError("the model reads a picture, and an example has none; give data with pictures")
    try:
        if isinstance(path, ImageInMemory):
            return _in_colour(path.image)
        with Image.open(path) as file:
            return _in_colour(upright(file))
    except FileNotFoundError as error:
        raise UserError(
            f"the picture {path} cannot be read ({error}); check the folder that holds the data set's images"
        ) from None
    # Damaged files make Pillow raise OSError, SyntaxError, struct.error, DecompressionBombError and others.
    except Exception as error:
        raise UserError(
            f"the picture {path} cannot be read ({error}); replace it, or take it out of the data set"
        ) from None


def _in_colour(picture: Any) -> Any:
    return (_eight_bits(picture) if picture.mode.startswith("I") else picture).convert("RGB")


def _eight_bits(picture: Any) -> Any:
    """An image of 16-bit grey in 8 bits; Pillow would clip everything above 255 to white.

    An image in mode I (32 bits) may use no more than 8 of them.
    """
    from PIL import Image

    values = np.asarray(picture).clip(0, 65535)
    is_wide = picture.mode != "I" or values.max(initial=0) > 255
    return Image.fromarray((values // 256 if is_wide else values).astype(np.uint8))


class Pixels:
    """Pixel values by path; those of the last few hundred images are cached, until their files change."""

    def __init__(self, prepare: Callable[[Any], Tensor]) -> None:
        """Start with an empty cache.

        Args:
            prepare: turns an RGB image into pixel values [3, height, width].
        """
        self.prepare = prepare
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    @classmethod
    def of(cls, image_processor: Any) -> Pixels:
        """Pixel values from an image processor of transformers."""
        return cls(lambda image: image_processor(images=image, return_tensors="pt")["pixel_values"][0])

    def __call__(self, paths: Sequence[str | None]) -> Tensor:
        """Pixel values [images, 3, height, width] of the images at these paths.

        Raises:
            UserError: see ``load_image``.
        """
        return torch.stack([self._one(path) for path in paths])

    def _one(self, path: str | None) -> Tensor:
        key = _identity(path)
        if key not in self._kept:
            self._kept[key] = self.prepare(load_image(path))
            if len(self._kept) > CACHED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _identity(path: str | None) -> Hashable:
    """What tells an image from all others: its hash in memory; of a file its place, time and size."""
    if path is None or isinstance(path, ImageInMemory):
        return path
    try:
        file = os.stat(path)
    except OSError:
        return path  # load_image says what is wrong with it
    return os.path.realpath(path), file.st_mtime_ns, file.st_size
