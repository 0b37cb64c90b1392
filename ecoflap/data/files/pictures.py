"""Pictures as rows hold them: paths, bytes, data URLs or pictures of Pillow's."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecoflap.data.image_in_memory import ImageInMemory
from ecoflap.errors import UserError

WANTED = 'a path, {"bytes": ..., "path": ...} or a picture of Pillow\'s'


def locate(image: Any, folder: Path | None, where: str) -> str:
    """The path of a picture, or a picture in memory.

    Args:
        image: a path, bytes, a dict with ``bytes`` or ``path`` as ``datasets`` stores pictures, a data URL,
            or a picture of Pillow's.
        folder: what relative paths start from; None for the working directory, and paths that are looked at
            later.
        where: the row, for messages.

    Raises:
        UserError: if it is nothing of the kind, is on the web, can't be read, or there is no such file.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        return ImageInMemory(image)
    if isinstance(image, bytes):
        return _decoded(image, where)
    if isinstance(image, Mapping) and image.get("bytes") is not None:
        return _decoded(image["bytes"], where)
    if isinstance(image, Mapping) and image.get("path") is not None:
        return locate(image["path"], folder, where)
    if not isinstance(image, str | Path):
        raise UserError(f"image of {where} is a {type(image).__name__}; give {WANTED}")
    text = str(image)
    if text.startswith("data:"):
        return _decoded(_from_data_url(text, where), where)
    if text.startswith(("http://", "https://")):
        raise UserError(
            f"image of {where} is the address {text}; download the pictures, and give their paths"
        )
    return _file(text.removeprefix("file://"), folder, where)


def _file(path: str, folder: Path | None, where: str) -> str:
    """The path of a file, from a folder on.

    Raises:
        UserError: if there is no such file in the folder.
    """
    if folder is None:
        return str(Path(path).expanduser())
    file = folder / Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"{where}: there is no picture {file}; give the folder that its paths start from with"
            " calibration.images=FOLDER"
        )
    return str(file)


def _from_data_url(text: str, where: str) -> bytes:
    head, _, content = text.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not in base64")
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UserError(f"image of {where} is a damaged data URL ({error}); mend it") from None


def _decoded(content: bytes, where: str) -> ImageInMemory:
    """A picture from the bytes of its file.

    Raises:
        UserError: if they are no picture.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return ImageInMemory(picture)
    # Damaged files make Pillow raise OSError, SyntaxError, struct.error, DecompressionBombError and others.
    except Exception as error:
        raise UserError(f"image of {where} can't be read ({error}); mend the row, or take it out") from None
