"""Whether a command line runs once or is a sweep, without composing its config for that."""

from __future__ import annotations

from hydra._internal.hydra import Hydra
from hydra.types import RunMode


def mode_of_overrides(_: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
    """``Hydra.get_mode`` without composing the config, of which no file sets the mode."""
    given = [one.partition("=")[2] for one in overrides if one.startswith("hydra.mode=")]
    return RunMode[given[-1]] if given and given[-1] in RunMode.__members__ else None
