"""Find what is wrong with the key or the value of an option, ``key=value``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, get_type_hints

from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ecoflap.cli.arguments import lister
from ecoflap.cli.choices import Choices, keys
from ecoflap.errors import FEW, did_you_mean, typed_command, wrong_type
from ecoflap.run.config import RunConfig, RuntimeConfig
from ecoflap.run.instantiate import option_type


def wrong_value(override: Override, base: DictConfig, choices: Choices) -> str | None:
    """What is wrong with ``key=value``."""
    line, key = str(override.input_line), override.key_or_group
    if key in choices.groups:
        names = did_you_mean("", choices.options(key), f"conf/{key} has them")
        return f"{line}: a {key} is chosen by its name; {names}"
    if "/" in key or override.package is not None:
        group = key.partition("@")[0]
        return f"{line}: there is no group {group}; {did_you_mean(group, choices.groups, lister())}"
    parent, name = _deepest(base, key)
    node = OmegaConf.select(base, parent, throw_on_missing=False) if parent else base
    # ``in`` a config is false for a key whose required value is missing.
    there = OmegaConf.is_dict(node) and name in list(node) and f"{parent}.{name}".lstrip(".") == key
    if override.is_add() and there and not isinstance(override.value(), dict | list):
        return f"{line}: {key} is there already; leave the plus out: {line.lstrip('+')}"
    if not there and not (override.is_add() or override.is_force_add()):
        return _no_such_key(line, key, parent, name, node, choices)
    inside = OmegaConf.select(base, key, throw_on_missing=False)
    if OmegaConf.is_dict(inside) and not isinstance(override.value(), dict) and not override.is_delete():
        names = ", ".join(f"{key}.{inner}" for inner in keys(inside))
        return f"{line}: {key} is a group of options; name one of them: {names}"
    for value in values_of(override) if not override.is_delete() else ():
        try:
            choices.compose([*_groups(base), f"{override.get_key_element()}={_as_hydra(value)}"])
        except (HydraException, OmegaConfBaseException) as error:
            if (kind := kind_of(key)) is not None:
                return wrong_type(key, value, kind, _example(base, key))
            if isinstance(value, dict) and choices.takes_any_name(inside, key):
                return f"{line}: {key} has not all of these names yet; add a plus: {shlex.quote(f'+{line}')}"
            return f"{line}: {str(error.__cause__ or error).splitlines()[0]}"
    return None


def values_of(override: Override) -> Iterator[Any]:
    """The values of an override: one, or each of a sweep."""
    if override.is_discrete_sweep():
        yield from (
            value.text if isinstance(value, QuotedString) else value for value in override.sweep_iterator()
        )
    elif not override.is_sweep_override():
        yield override.value()


def _groups(base: DictConfig) -> list[str]:
    """The choices of groups that a config was composed with."""
    return [line for line in base.hydra.overrides.task if not line.startswith("hydra")]


def _as_hydra(value: Any) -> str:
    return str(Override._get_value_element_as_str(value))


def _deepest(base: DictConfig, key: str) -> tuple[str, str]:
    """The longest parent of a dotted key that exists, and the name after it."""
    parts = key.split(".")
    for count in range(len(parts) - 1, 0, -1):
        if OmegaConf.select(base, ".".join(parts[:count]), throw_on_missing=False) is not None:
            return ".".join(parts[:count]), parts[count]
    return "", parts[0]


def _no_such_key(line: str, key: str, parent: str, name: str, node: Any, choices: Choices) -> str:
    known = keys(node)
    if key.startswith("cluster."):
        launcher = f"hydra.launcher.{key.partition('.')[2]}"
        return f"{line}: cluster has no options of its own; the launcher's are {launcher}"
    if choices.takes_any_name(node, parent):
        return f"{line}: {parent} has no {name!r} yet; add it with a plus: +{line.lstrip('~')}"
    if not known and OmegaConf.is_dict(node):
        return f"{line}: {parent} as it is chosen has no options; choose another: {parent}=OPTION"
    if not known:
        return f"{line}: {parent} is a single value and has no {name}; write {parent}=VALUE"
    if name in known:  # an option of the class that its file does not list
        return f"{line}: {key} has its default and is not listed; add it with a plus: +{line.lstrip('~')}"
    if tasks := [one for one, part in (node.get("tasks") or {}).items() if name in keys(part)]:
        theirs = (f"{parent}.tasks.{one}.{name}" for one in tasks)
        return f"{line}: the options of a suite are those of its tasks: {' or '.join(theirs)}"
    where = f"{parent} has no option {name!r}" if parent else f"there is no option {name!r}"
    if owners := choices.with_option(parent, name):
        suite = f"[{','.join(map(str, node.get('tasks', ())))}]"  # which has no name
        where = f"{parent}={node.get('name') or suite} has no option {name!r}"
        more = f" or {len(owners) - FEW} others" if len(owners) > FEW else ""
        return f"{line}: {where}; choose one that has it: {parent}={' or '.join(owners[:FEW])}{more}"
    listing = f"{typed_command()} --cfg all --package {parent} lists them"
    return f"{line}: {where}; {did_you_mean(name, known, listing)}"


def kind_of(key: str) -> str | None:
    """The type of an option of the run itself; None for other options."""
    group, _, name = key.rpartition(".")
    owner = {"": RunConfig, "runtime": RuntimeConfig}.get(group)
    return option_type(get_type_hints(owner)[name]) if owner is not None else None


def _example(base: DictConfig, key: str) -> object:
    value = OmegaConf.select(base, key, throw_on_missing=False)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
