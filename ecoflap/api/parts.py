"""The parts of a method: given as objects, or by the names that the command line knows.

Configs are composed in isolation: the caller's Hydra, config store and resolvers stay unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from threading import RLock
from typing import Any

from omegaconf import OmegaConf

from ecoflap.api.given import as_config
from ecoflap.errors import UserError, did_you_mean
from ecoflap.run.config import register
from ecoflap.run.plan.parts import make, require_members
from ecoflap.storage.installation import conf_folder

COMPOSING = RLock()  # Hydra's registries are the process's, and one thread at a time may borrow them


def part(group: str, chosen: Any, options: Mapping[str, Any]) -> Any:
    """A part of a method; None if the choice has no class, such as ``score=none``.

    Args:
        group: its config group.
        chosen: a name, the part itself, or None for the default.
        options: options of a named part.

    Raises:
        UserError: if there is no such name or option, or an object is given options or can't be such a part.
    """
    if chosen is None:
        chosen = _node(group)["name"]
    if isinstance(chosen, str):
        return built(group, {**named(group, chosen), **options})
    refuse_options(group, chosen, options)
    require_members(group, chosen, f"{group}={type(chosen).__name__}")
    return chosen


def refuse_options(group: str, chosen: Any, options: Mapping[str, Any]) -> None:
    """Refuse a class, and options for an existing object.

    Raises:
        UserError: if it is a class, or options are given.
    """
    if isinstance(chosen, type):
        raise UserError(f"{group}={chosen.__name__} is a class; give an object: {chosen.__name__}(...)")
    if options:
        raise UserError(
            f"{', '.join(options)}: options go with the name of a {group}; give them to"
            f" {type(chosen).__name__}(...), which is made already"
        )


def built(group: str, node: Mapping[str, Any]) -> Any:
    """The object that a node of the config describes; None if it names no class.

    Raises:
        UserError: as ``ecoflap.run.plan.parts.make`` and ``as_config``.
    """
    if "_target_" not in node:
        return None
    return make(group, as_config(group, node))


def named(group: str, name: str) -> dict[str, Any]:
    """The node of a group's choice, as the command line composes it.

    Raises:
        UserError: if there is no such choice.
    """
    if name not in (known := names(group)):
        instead = "give texts as a list; " if group == "calibration" else ""
        if (group, name) == ("allocation", "uniform"):
            instead = "the same sparsity everywhere is score='none', allocation='water_filling'; "
        shown = name if len(name) <= 40 else f"{name[:40]}..."
        raise UserError(f"{group}={shown} is not known; {instead}{did_you_mean(name, known)}")
    return _node(group, f"{group}={name}")


@cache
def names(group: str) -> tuple[str, ...]:
    """The choices of a group."""
    with _own_hydra() as loader:
        return tuple(loader.repository.get_group_options(group))


def _node(group: str, *overrides: str) -> dict[str, Any]:
    """A group of the config that these overrides compose, as plain values."""
    return deepcopy(_composed(group, *overrides))


@cache
def _composed(group: str, *overrides: str) -> dict[str, Any]:
    from hydra.types import RunMode

    with _own_hydra() as loader:
        config = loader.load_configuration("config", list(overrides), RunMode.RUN)
        found: Any = OmegaConf.to_container(config[group], resolve=True)
        return dict(found)


@contextmanager
def _own_hydra() -> Iterator[Any]:
    """A config loader of Hydra, in a context that restores Hydra's global state at its end."""
    from hydra import version
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton
    from omegaconf.basecontainer import BaseContainer

    with COMPOSING:
        Plugins.instance()  # imports the plugins, which register their configs only once
        store, instances = ConfigStore.instance(), Singleton._instances
        stored, resolvers = store.repo, dict(BaseContainer._resolvers)
        store.repo = deepcopy(stored)
        Singleton._instances = {
            kind: one for kind, one in instances.items() if kind is not version.VersionBase
        }
        try:
            version.setbase("1.3")
            register()
            yield ConfigLoaderImpl(create_config_search_path(str(conf_folder())))
        finally:
            store.repo = stored
            Singleton._instances = instances
            BaseContainer._resolvers.clear()
            BaseContainer._resolvers.update(resolvers)
