"""The choices of a command line: groups, their configs in all folders that Hydra searches, and options."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from itertools import dropwhile
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ConfigDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ecoflap.cli.recipe import primary_config
from ecoflap.errors import UserError
from ecoflap.run.import_path import COMMAND_LINE
from ecoflap.run.registry import HIDDEN, options_of
from ecoflap.storage.installation import conf_folder

SEARCH_PATH = "hydra.searchpath"
HEADER = re.compile(r"\s*#\s*@")
PACKAGE = re.compile(r"\s*#\s*@package\s")


def check_config_dir(folder: str | None) -> None:
    """Refuse a folder of ``--config-dir`` that does not exist.

    Raises:
        UserError: if it doesn't.
    """
    if folder is not None and not Path(folder).is_dir():
        raise UserError(
            f"--config-dir {folder}: there is no such folder; give one that holds configs, such as"
            " my_conf/model/*.yaml"
        )


class Choices:
    """The configs that a command line chooses from."""

    def __init__(self, config_dir: str | None = None, overrides: Sequence[str] = ()) -> None:
        """Search the folders that Hydra searches.

        Args:
            config_dir: the folder of ``--config-dir``.
            overrides: the overrides of the command line; ``hydra.searchpath`` names further places.
        """
        search, last = create_config_search_path(str(conf_folder())), SearchPathQuery(provider="schema")
        if config_dir is not None:
            search.prepend(provider=COMMAND_LINE, path=f"file://{os.path.abspath(config_dir)}", anchor=last)
        for place in searched(overrides):
            search.prepend(provider=SEARCH_PATH, path=place, anchor=last)
        self.loader = ConfigLoaderImpl(search)

    def check_places(self) -> None:
        """Refuse places of ``hydra.searchpath`` that do not exist.

        Raises:
            UserError: if there is one.
        """
        for source in self.loader.get_sources():
            if source.provider == SEARCH_PATH and not source.available():
                what = "package" if source.scheme() == "pkg" else "folder"
                raise UserError(
                    f"{SEARCH_PATH}: {source.scheme()}://{source.path}: there is no such {what}; give"
                    " file://FOLDER, or pkg://PACKAGE.FOLDER of an installed package"
                )

    def check_headers(self, overrides: Sequence[str]) -> None:
        """Refuse chosen files with an ``@package`` line behind other lines, where Hydra doesn't read it.

        Raises:
            UserError: if there is one.
        """
        for override in overrides:
            key, _, names = override.lstrip("+").partition("=")
            group = key.partition("@")[0]
            for name in set(names.split(",")).intersection(self.options(group)):
                for source in self.loader.get_sources():
                    if (line := _late_package(file := Path(source.path, group, f"{name}.yaml"))) is not None:
                        raise UserError(
                            f"{override}: the @package of {file} is in line {line}, where Hydra doesn't read"
                            " it; make it the first line"
                        )

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

    def files(self, group: str) -> list[str]:
        """The options of a group, without those of groups inside it."""
        return self._inside(group, ObjectType.CONFIG)

    def options(self, group: str) -> list[str]:
        """What may follow ``group=``, in folders below it too."""
        inside = [inner for inner in self.groups if inner == group or inner.startswith(f"{group}/")]
        return [f"{inner}/{name}".removeprefix(f"{group}/") for inner in inside for name in self.files(inner)]

    def with_option(self, group: str, option: str) -> list[str]:
        """What may follow ``group=`` and has an option of this name, by itself or by its defaults."""
        return [name for name in self.options(group) if option in self._keys(f"{group}/{name}")]

    def _keys(self, path: str) -> set[str]:
        """The options in a config file, and in what its defaults list."""
        loaded = self.loader.repository.load_config(path)
        if loaded is None:
            return set()
        found = set(keys(loaded.config))
        for default in loaded.defaults_list or ():
            if isinstance(default, ConfigDefault) and default.path not in (None, "_self_"):
                beside = f"{path.rpartition('/')[0]}/{default.path}"
                found |= self._keys(default.path[1:] if default.path.startswith("/") else beside)
        return found

    def takes_any_name(self, node: Any, key: str) -> bool:
        """Whether the node of a key maps names of the user's own to values, as ``model.chat`` does.

        The nodes of parts, and those that hold parts, don't.
        """
        if not OmegaConf.is_dict(node) or OmegaConf.get_type(node) is not dict:
            return False
        inside: Any = OmegaConf.to_container(node)
        is_part = not key or key.replace(".", "/") in self.groups or "_target_" in inside
        return not is_part and not any(isinstance(value, dict) for value in inside.values())

    def compose(self, overrides: list[str]) -> DictConfig:
        """Compose the config of a command line, which may contain sweeps."""
        return self.loader.load_configuration(
            primary_config(), overrides, RunMode.MULTIRUN, validate_sweep_overrides=False
        )


def _late_package(file: Path) -> int | None:
    """The line of an ``@package`` behind a line that is no header; None if there is none, or no such file."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    behind = dropwhile(lambda pair: not pair[1].strip() or HEADER.match(pair[1]), enumerate(lines, 1))
    return next((number for number, line in behind if PACKAGE.match(line)), None)


def is_search_path(override: str) -> bool:
    """Whether an argument names places for Hydra to search."""
    return override.lstrip("+").startswith(f"{SEARCH_PATH}=")


def searched(overrides: Sequence[str]) -> list[str]:
    """The places in ``hydra.searchpath``; none if Hydra will refuse its value."""
    given = [one for one in overrides if is_search_path(one)]
    try:
        values = [override.value() for override in OverridesParser.create().parse_overrides(given)]
    except HydraException:
        return []
    places = values[0] if values else []  # Hydra uses the first
    return [str(place) for place in places] if isinstance(places, list) else []


def keys(node: Any) -> list[str]:
    """The options that a node of the config holds, and those of the class that it names."""
    found = [str(key) for key in node] if OmegaConf.is_dict(node) else []
    target = OmegaConf.select(node, "_target_", throw_on_missing=False) if found else None
    kind = options_of(str(target)) if target else None
    if kind is not None:
        found += [entry.name for entry in fields(kind) if entry.init and entry.name not in found]
    return [key for key in found if key != "_target_"]


def not_utf8(folder: str | None) -> Path | None:
    """The first config file of a folder that can't be read as text; None if all can."""
    for file in sorted(Path(folder).rglob("*.yaml")) if folder is not None else ():
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return file
    return None
