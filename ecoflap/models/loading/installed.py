"""Data files inside installed packages, found without importing the packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ecoflap.errors import UserError


def installed_file(package: str, file: str, install: str) -> Path:
    """A data file inside an installed package.

    Args:
        package: its import name.
        file: path inside it.
        install: the command that installs it, for the message.

    Raises:
        UserError: if the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0]) / file if folders else None
    if path is None or not path.is_file():
        raise UserError(f"{file} is in the package {package}, which is not installed; run: {install}")
    return path
