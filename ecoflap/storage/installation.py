"""Where the package lies: in a checkout, in a snapshot of one, or installed."""

from __future__ import annotations

from pathlib import Path

from ecoflap.storage.file_names import SNAPSHOT
from ecoflap.storage.files import read_json

PACKAGE = Path(__file__).resolve().parents[1]


def conf_folder() -> Path:
    """The folder of the config groups: inside an installed package, beside that of a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def checkout() -> Path | None:
    """The checkout, or the snapshot of one, that contains the package; None if it is installed."""
    return PACKAGE.parent if conf_folder().parent == PACKAGE.parent else None


def package_origin() -> Path:
    """The folder of the package; in a code snapshot, that of the original code."""
    snapshot = read_json(PACKAGE.parent / SNAPSHOT)
    return PACKAGE if snapshot is None else Path(snapshot["origin"]) / PACKAGE.name


def install_extra(name: str) -> str:
    """The command that installs an extra of the package, for a message."""
    return f"pip install 'ecoflap[{name}]'" if checkout() is None else f"pip install -e '.[{name}]'"
