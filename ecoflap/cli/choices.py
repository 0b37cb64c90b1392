"""What may be chosen: the groups and files in the folders that Hydra searches, and the options that they
hold.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ecoflap.run.registry import HIDDEN, options_of

CONF = Path(__file__).parents[2] / "conf"


class Choices:
    """The configs that a command line chooses from."""

    def __init__(self, config_dir: str | None = None) -> None:
        """``config_dir``: a folder that is searched too."""
        search = create_config_search_path(str(CONF))
        if config_dir is not None:
            where = SearchPathQuery(provider="schema")
            search.prepend(
                provider="command-line", path=f"file://{Path(config_dir).absolute()}", anchor=where
            )
        self.loader = ConfigLoaderImpl(search)

    @cached_property
    def groups(self) -> list[str]:
        """Every group that a run chooses from, with those inside others: pruner, experiment/blip2, ..."""
        found = list[str]()
        waiting = [group for group in self._inside("", ObjectType.GROUP) if group != HIDDEN]
        while waiting:
            group = waiting.pop()
            found.append(group)
            waiting += [f"{group}/{inner}" for inner in self._inside(group, ObjectType.GROUP)]
        return sorted(found)

    def _inside(self, group: str, kind: ObjectType) -> list[str]:
        return list(self.loader.repository.get_group_options(group, kind))

    def options(self, group: str) -> list[str]:
        """What may follow ``group=``, in folders below it too."""
        inside = [inner for inner in self.groups if inner == group or inner.startswith(f"{group}/")]
        return [
            f"{inner}/{name}".removeprefix(f"{group}/")
            for inner in inside
            for name in self._inside(inner, ObjectType.CONFIG)
        ]

    def compose(self, overrides: list[str]) -> DictConfig:
        """The config of a command line that may hold sweeps."""
        return self.loader.load_configuration(
            "config", overrides, RunMode.MULTIRUN, validate_sweep_overrides=False
        )


def keys(node: Any) -> list[str]:
    """The options that a node of the config holds, and those of the class that it names."""
    found = [str(key) for key in node] if OmegaConf.is_dict(node) else []
    target = OmegaConf.select(node, "_target_", throw_on_missing=False) if found else None
    kind = options_of(str(target)) if target else None
    if kind is not None:
        found += [entry.name for entry in fields(kind) if entry.init and entry.name not in found]
    return [key for key in found if key != "_target_"]


def not_utf8(folder: str | None) -> Path | None:
    """The first config file of a folder that can't be read as text; null where all can."""
    for file in sorted(Path(folder).rglob("*.yaml")) if folder is not None else ():
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return file
    return None
