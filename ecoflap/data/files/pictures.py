"""Pictures as rows hold them: paths, bytes, data URLs or pictures of Pillow's."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from ecoflap.data.image_in_memory import ImageInMemory
from ecoflap.data.sources import bytes_source
from ecoflap.errors import UserError

Locate = Callable[[Any, Path | None, str], str]
"""(picture as a row has it, folder of relative paths, the row for messages) -> its path, or one in memory."""
FILE_URL = "file://"
IN_ROW = "a picture in its row"
WANTED = 'a path, {"bytes": ..., "path": ...} or a picture of Pillow\'s'


def locate(image: Any, folder: Path | None, where: str) -> str:
    """The path of a picture, or a picture in memory.

    Args:
        image: a path, bytes, a dict with ``bytes`` or ``path`` as ``datasets`` stores pictures, a data URL,
            or a picture of Pillow's, which is turned as its EXIF says only if ``Image.open`` gave it.
        folder: what relative paths start from; None for the working directory, and paths that are looked at
            later.
        where: the row, for messages.

    Raises:
        UserError: if it is nothing of the kind, is on the web, can't be read, or there is no such file.
    """
    held = _held(image, folder, where)
    if isinstance(held, str):
        return held
    return _decoded(held, where)


def look_up(image: Any, folder: Path | None, where: str) -> str:
    """The same without opening a picture; of one that the row itself holds, a word for it.

    Raises:
        UserError: if ``locate`` refuses it without looking at its pixels.
    """
    held = _held(image, folder, where)
    return held if isinstance(held, str) else IN_ROW


def _held(image: Any, folder: Path | None, where: str) -> Any:
    """A path, the bytes of a picture's file, or a picture of Pillow's; see ``locate``.

    Raises:
        UserError: if it is nothing of the kind, is on the web, or there is no such file.
    """
    from PIL import Image

    if isinstance(image, Image.Image | bytes):
        return image
    if isinstance(image, Mapping) and image.get("bytes") is not None:
        return image["bytes"]
    if isinstance(image, Mapping) and image.get("path") is not None:
        return _held(image["path"], folder, where)
    if not isinstance(image, str | Path):
        raise UserError(f"image of {where} is a {type(image).__name__}; give {WANTED}")
    text = str(image)
    if text.startswith("data:"):
        return _from_data_url(text, where)
    if text.startswith(("http://", "https://")):
        raise UserError(
            f"image of {where} is the address {text}; download the pictures, and give their paths"
        )
    if text.startswith(FILE_URL):
        text = url2pathname(text.removeprefix(FILE_URL))
    return _file(text, folder, where)


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


def _decoded(held: Any, where: str) -> ImageInMemory:
    """A picture of Pillow's, which may not be read yet, or one from the bytes of its file.

    Raises:
        UserError: if they are not a picture, or it is damaged.
    """
    from PIL import Image

    try:
        if not isinstance(held, bytes):
            return ImageInMemory(held)
        with Image.open(io.BytesIO(held)) as picture:
            picture.load()
            return ImageInMemory(picture, bytes_source(where, held))
    # Damaged files make Pillow raise OSError, SyntaxError, struct.error, DecompressionBombError and others.
    except Exception as error:
        raise UserError(f"image of {where} can't be read ({error}); mend the row, or take it out") from None
