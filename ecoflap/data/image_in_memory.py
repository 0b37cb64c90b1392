"""An image in memory where examples have the path of a file."""

from __future__ import annotations

import hashlib
from typing import Any


class ImageInMemory(str):
    """An image in memory where a path is expected; as a string, it is a hash of its pixels.

    Attributes:
        image: the Pillow image.
    """

    image: Any

    def __new__(cls, image: Any) -> ImageInMemory:
        """Wrap a Pillow image."""
        shown = f"{image.mode} {image.size}".encode() + image.tobytes()
        self = super().__new__(
            cls, f"an image in memory {hashlib.blake2b(shown, digest_size=16).hexdigest()}"
        )
        self.image = image
        return self
