"""The import path of parts outside the package.

With ``--config-dir DIR``, the parent folder of DIR is on it, so that configs in DIR can name classes of
modules beside DIR. Imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from hydra.core.config_search_path import ConfigSearchPath

COMMAND_LINE = "command-line"  # Hydra's name for the configs of --config-dir


def beside(config_dir: str) -> str:
    """The absolute path of the parent of a folder of configs."""
    return os.path.dirname(os.path.abspath(config_dir))


def extend_import_path(folders: Iterable[str]) -> None:
    """Append folders to the import path, where they shadow nothing that is installed."""
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]


def config_folders(search_path: ConfigSearchPath) -> list[str]:
    """The folders of configs that the command line has added."""
    return [
        element.path.removeprefix("file://")
        for element in search_path.get_path()
        if element.provider == COMMAND_LINE
    ]
