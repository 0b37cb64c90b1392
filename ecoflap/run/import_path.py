"""The import path of parts outside the package: with ``--config-dir DIR``, the folder that holds DIR is on
it, so that configs in DIR can name classes of modules beside DIR. Light to import (no torch).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from hydra.core.config_search_path import ConfigSearchPath

COMMAND_LINE = "command-line"  # what Hydra calls the source of configs that --config-dir gives


def beside(config_dir: str) -> str:
    """The folder that holds a folder of configs, absolute."""
    return os.path.dirname(os.path.abspath(config_dir))


def extend_import_path(folders: Iterable[str]) -> None:
    """Put folders at the end of the import path, where they hide nothing that is installed."""
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]


def folders_of(search_path: ConfigSearchPath) -> list[str]:
    """The folders that the jobs of a sweep import from: those of the command line that submits it."""
    return [
        beside(element.path.removeprefix("file://"))
        for element in search_path.get_path()
        if element.provider == COMMAND_LINE
    ]
