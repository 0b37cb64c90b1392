"""Configs in Hydra's ConfigStore that are made at their first use, as a run uses a few of a hundred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import OmegaConf


class LazyNode(ConfigNode):
    """A config of the store whose ``node`` is made at its first use."""

    def __init__(
        self, group: str, name: str, values: Callable[[], dict[str, Any]], package: str | None
    ) -> None:
        self.name, self.group, self.package, self.provider = f"{name}.yaml", group, package, "ecoflap"
        self._values = values

    def __getattr__(self, name: str) -> Any:
        """Make ``node``, the only attribute that may be missing."""
        if name != "node":
            raise AttributeError(name)
        self.node = OmegaConf.create(self._values())
        return self.node


def store(group: str, name: str, values: Callable[[], dict[str, Any]], package: str | None = None) -> None:
    """Store a config as ``group/name``.

    Args:
        group: config group, with / between a group and one inside it.
        name: choice of the group.
        values: makes the config, its defaults list included.
        package: where the config goes; null for the group's place.
    """
    place = ConfigStore.instance().repo
    for part in group.split("/"):
        place = place.setdefault(part, {})
    place[f"{name}.yaml"] = LazyNode(group, name, values, package)
