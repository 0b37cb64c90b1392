"""An image in memory where examples have the path of a file."""

from __future__ import annotations

import hashlib
from typing import Any


class ImageInMemory(str):
    """An image in memory where a path is expected; as a string, it is a hash of what it shows.

    Attributes:
        image: the Pillow image.
        source: see ``ecoflap.data.sources.bytes_source``; None if the bytes of its file are not known.
    """

    image: Any
    source: str | None

    def __new__(cls, image: Any, source: str | None = None) -> ImageInMemory:
        """Wrap a Pillow image; see ``upright``."""
        image = upright(image)
        self = super().__new__(cls, f"an image in memory {image_digest(image)}")
        self.image, self.source = image, source
        return self


def upright(image: Any) -> Any:
    """An image as its camera was held, which EXIF says; one that was not opened from a file stays as it is.

    ``datasets`` and transformers turn pictures likewise.
    """
    from PIL import ImageFile, ImageOps

    return ImageOps.exif_transpose(image) if isinstance(image, ImageFile.ImageFile) else image


def image_digest(image: Any) -> str:
    """A hash of what an image shows: its pixels, the colours of their indices, and what is transparent."""
    found = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    found.update(image.tobytes())
    found.update(bytes(image.getpalette(None) or ()))
    found.update(repr(image.info.get("transparency")).encode())
    return found.hexdigest()
