"""Where a data set's files lie, and what is said when they don't."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError


def require_files(folder: str | None, wanted: str, option: str, name: str, obtain: str) -> Path:
    """The folder of a data set, when it holds the file that is needed.

    Args:
        folder: as the config has it; null where none was given.
        wanted: path or glob pattern inside it.
        option: the config group that asks, such as ``task``.
        name: of the data set.
        obtain: how to get it, as a sentence.

    Raises:
        UserError: it isn't there.
    """
    if folder is None:
        raise UserError(f"{option}={name} needs the data set's folder: {option}.path=FOLDER with {wanted} in it. {obtain}")
    root = Path(folder).expanduser()
    if not any(root.glob(wanted)):
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) if root.is_dir() else "no such folder"
        raise UserError(f"{option}={name}: {wanted} is not in {option}.path={folder} ({found}). {obtain}")
    return root


def require_images(images: Iterable[str], option: str, obtain: str) -> None:
    """Refuse examples whose pictures are not there, before a model is asked about the others for hours.

    Args:
        images: paths.
        option: what asks, such as ``task=vqav2``.
        obtain: where they are to be had.

    Raises:
        UserError: some are missing.
    """
    asked: Sequence[str] = list(dict.fromkeys(images))
    missing = [image for image in asked if not Path(image).is_file()]
    if missing:
        raise UserError(f"{option}: {len(missing)} of {len(asked)} pictures are missing, such as {missing[0]}. {obtain}")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); download it again") from None
