"""Find the wrong argument of a command line that Hydra refuses, and say what to write instead."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException

from ecoflap.cli.arguments import KNOWN, PLACES, parsed, quoted
from ecoflap.cli.choices import Choices, not_utf8
from ecoflap.cli.wrong_value import kind_of, values_of, wrong_value
from ecoflap.errors import FEW, did_you_mean, path_option, written
from ecoflap.run import refusals
from ecoflap.run.config import METHODS

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
        if override not in chosen and (complaint := wrong_value(override, base, choices)):
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
    special = f"characters that Hydra takes only in quotes ({_special(value)})"
    return f"{argument}: {value!r} contains {special}; quote it twice: {quoted(argument)}"


def _special(value: str) -> str:
    """The characters of a value that Hydra reads as syntax, or takes only in quotes."""
    return " ".join(dict.fromkeys(re.findall(r"[^\w\s/+.%*@?|-]", value, re.ASCII))) or "spaces"


def _wrong_sweep(override: Override, multirun: bool) -> str | None:
    """What is wrong with a list of values without a sweep, or a sweep without values."""
    line, key = str(override.input_line), override.get_key_element()
    value = line.partition("=")[2]
    if not multirun and override.is_choice_sweep():
        several = f"{line} has several values: add -m to run one after the other"
        if override.key_or_group in (*METHODS, *PLACES):
            return f"{several}, or choose one"
        kind = kind_of(key) if "." not in key and key in KNOWN else "str"
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


def _unknown_choice(override: Override, choices: Choices) -> str | None:
    """What is wrong with the option of ``group=option``."""
    line, group = str(override.input_line), override.key_or_group
    options = choices.options(group)
    for value in values_of(override) if not override.is_delete() else ():
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
            path = shlex.quote(path_option("model.path", asked))
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
