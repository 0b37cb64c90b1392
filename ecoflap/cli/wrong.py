"""Find the wrong argument of a command line that Hydra refuses, and say what to write instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ecoflap.cli.arguments import KNOWN, PLACES, lister, parsed, quoted
from ecoflap.cli.choices import Choices, keys, not_utf8
from ecoflap.errors import FEW, did_you_mean, typed_command, written, wrong_type
from ecoflap.run import refusals
from ecoflap.run.config import METHODS, RunConfig, RuntimeConfig
from ecoflap.run.instantiate import option_type

OPENS = {"[": "]", "{": "}"}


def what_is_wrong(arguments: list[str], error: Exception) -> str | None:
    """What is wrong with a command line, in one line; None for a bug.

    Args:
        arguments: the command line.
        error: the error that it led to.
    """
    return refusals.describe(error) or explain(arguments, error) or refusals.of_hydra(error)


def explain(arguments: list[str], error: Exception) -> str | None:
    """What is wrong with the first argument that Hydra refuses; None if it accepts all.

    Args:
        arguments: the command line.
        error: what Hydra raised.
    """
    flags = parsed(arguments)
    if isinstance(error, UnicodeDecodeError) and (file := not_utf8(flags.config_dir)):
        return f"{file} is not text in UTF-8, which config files are; convert it, such as with iconv -t utf-8"
    choices = Choices(flags.config_dir, flags.overrides)
    parser, overrides = OverridesParser.create(config_loader=choices.loader), list[Override]()
    for argument in flags.overrides:
        try:
            overrides.append(parser.parse_override(argument))
        except HydraException:
            return _unreadable(argument)
    multirun = flags.multirun or any(override.input_line == "hydra.mode=MULTIRUN" for override in overrides)
    for override in overrides:
        if override.is_sweep_override() and (complaint := _wrong_sweep(override, multirun)):
            return complaint
    groups = [override for override in overrides if override.key_or_group in choices.groups]
    chosen = [override for override in groups if not isinstance(override.value(), dict)]
    for override in chosen:
        if complaint := _unknown_choice(override, choices):
            return complaint
    try:
        base = choices.compose([str(override.input_line) for override in chosen])
    except Exception:  # Hydra's, OmegaConf's, YAML's or the disk's
        return next((complaint for override in chosen if (complaint := _misplaced(override, choices))), None)
    for override in overrides:
        if override not in chosen and (complaint := _wrong_value(override, base, choices)):
            return complaint
    return None


def _unreadable(argument: str) -> str:
    key, _, value = argument.partition("=")
    if value.strip().startswith(",") or value.strip().endswith(","):
        return f"{argument}: a comma without a value beside it; leave it out: {key}={value.strip(' ,')}"
    names = re.split(r"[./@]", key.lstrip("+~"))
    if not all(name.isidentifier() for name in names):
        return f"{argument}: {key!r} is not the name of an option; write key=value or group.key=value"
    opening = value[:1]
    if opening in OPENS and value.count(opening) != value.count(close := OPENS[opening]):
        return f"{argument}: the {opening} is not closed, or closed twice; write as many {close} as {opening}"
    special = f"characters that are special to Hydra ({_special(value)})"
    return f"{argument}: {value!r} contains {special}; quote it twice: {quoted(argument)}"


def _special(value: str) -> str:
    return " ".join(dict.fromkeys(one for one in value if one in "=,[]{}()'\"$:\\")) or "spaces"


def _wrong_sweep(override: Override, multirun: bool) -> str | None:
    """What is wrong with a list of values without a sweep, or a sweep without values."""
    line, key = str(override.input_line), override.get_key_element()
    value = line.partition("=")[2]
    if not multirun and override.is_choice_sweep():
        several = f"{line} has several values: add -m to run one after the other"
        if override.key_or_group in (*METHODS, *PLACES):
            return f"{several}, or choose one"
        kind = _kind(key) if "." not in key and key in KNOWN else "str"
        if kind == "float":
            number = value.replace(",", ".")
            point = f", or write one number with a point: {key}={number}"
            return several + (point if re.fullmatch(r"\d*\.\d+", number) else ", or choose one")
        as_list, as_text = f"write '{key}=[{value}]' for a list", f"{quoted(line)} for one text with commas"
        return f"{several}, or {as_list}" + (f", or {as_text}" if kind == "str" else "")
    if override.key_or_group.startswith("hydra"):
        return f"{line}: Hydra's own options can't be swept; choose one value"
    if not multirun:
        return f"{line} is a sweep: add -m to run its values one after the other"
    if override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
        return f"{line} has no values to run; give some: {key}=VALUE,VALUE"
    return None


def _values(override: Override) -> Iterator[Any]:
    """The values of an override: one, or each of a sweep."""
    if override.is_discrete_sweep():
        yield from (
            value.text if isinstance(value, QuotedString) else value for value in override.sweep_iterator()
        )
    elif not override.is_sweep_override():
        yield override.value()


def _unknown_choice(override: Override, choices: Choices) -> str | None:
    """What is wrong with the option of ``group=option``."""
    line, group = str(override.input_line), override.key_or_group
    options = choices.options(group)
    for value in _values(override) if not override.is_delete() else ():
        if isinstance(value, list) and value and all(item in options for item in value):
            sweep = f"-m {group}={','.join(value)}"
            return f"{line}: a run has one {group}; choose one, or sweep over them with {sweep}"
        if isinstance(value, str) and value in options:
            continue
        asked = written(value)
        suite = override.package is not None and override.package.startswith("task.tasks.")
        start = f"{group if suite else override.get_key_element()}={asked}: there is no {group} {asked!r}; "
        if inside := [name for name in options if name.startswith(f"{asked}/")]:
            return f"{start}{asked} is a folder of several: {', '.join(inside[:FEW])}"
        if (group, asked) == ("allocation", "uniform"):
            return f"{start}the same sparsity everywhere is score=none allocation=water_filling"
        if group == "model" and asked and ("/" in asked or Path(asked).is_dir()):
            path = f"model.path={asked}"
            path = quoted(path) if re.search(r"[^\w./~-]", asked) else path
            return f"{start}load the path with model=causal_lm {path}, or model=vlm"
        return start + did_you_mean(asked, options, f"conf/{group} has them")
    return None


def _misplaced(override: Override, choices: Choices) -> str | None:
    """What is wrong with the group or the sign of ``group=option``.

    None if the error is in the option's file, which Hydra describes itself.
    """
    line, group = str(override.input_line), override.key_or_group
    try:
        choices.compose([line])
    except MissingConfigException:  # the chosen file wants another one, and Hydra names both
        return None
    except HydraException:
        one = f"{group}={line.partition('=')[2]}"
        if override.package is not None:
            return f"{line}: {override.package or 'an empty text'} is not a place for a {group}; write {one}"
        if override.is_add() or override.is_force_add():
            return f"{line}: a run has one {group}; leave the plus out: {one}"
        if override.is_delete():
            return f"{line}: there is nothing to remove; leave it out"
        return f"{line}: {group} is not in the config; prefix it with + to add it: +{line}"
    except Exception:
        return None
    return None


def _wrong_value(override: Override, base: DictConfig, choices: Choices) -> str | None:
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
    for value in _values(override) if not override.is_delete() else ():
        try:
            choices.compose([*_groups(base), f"{override.get_key_element()}={_as_hydra(value)}"])
        except (HydraException, OmegaConfBaseException) as error:
            if (kind := _kind(key)) is not None:
                return wrong_type(key, value, kind, _example(base, key))
            if isinstance(value, dict) and choices.takes_any_name(inside, key):
                return f"{line}: {key} has not all of these names yet; add a plus: {shlex.quote(f'+{line}')}"
            return f"{line}: {str(error.__cause__ or error).splitlines()[0]}"
    return None


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
    where = f"{parent} has no option {name!r}" if parent else f"there is no option {name!r}"
    if owners := choices.with_option(parent, name):
        where = f"{parent}={node.get('name')} has no option {name!r}"
        more = f" or {len(owners) - FEW} others" if len(owners) > FEW else ""
        return f"{line}: {where}; choose one that has it: {parent}={' or '.join(owners[:FEW])}{more}"
    listing = f"{typed_command()} --cfg all --package {parent} lists them"
    return f"{line}: {where}; {did_you_mean(name, known, listing)}"


def _kind(key: str) -> str | None:
    """The type of an option of the run itself; None for other options."""
    group, _, name = key.rpartition(".")
    owner = {"": RunConfig, "runtime": RuntimeConfig}.get(group)
    return option_type(get_type_hints(owner)[name]) if owner is not None else None


def _example(base: DictConfig, key: str) -> object:
    value = OmegaConf.select(base, key, throw_on_missing=False)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
