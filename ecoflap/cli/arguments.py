"""Prepare a command line for Hydra: rewrite our own notation, and refuse what is wrong at a glance."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from ecoflap.cli.choices import Choices, check_config_dir, searched
from ecoflap.cli.hydra_parser import accepting_help_objects
from ecoflap.cli.presets import with_presets
from ecoflap.cli.recipe import without_recipe
from ecoflap.errors import UserError, did_you_mean, path_option, text_option, typed_command
from ecoflap.run.config import METHODS, RunConfig
from ecoflap.run.import_path import beside, extend_import_path

PLACES = ("experiment", "sweep", "preset")  # groups without a default, which need a plus
KNOWN = (*(entry.name for entry in fields(RunConfig)), "cluster", "hydra")
WITHOUT = {
    "score": ", or score=none",
    "tracking": ", or tracking=none",
    "finetune": "; it does nothing unless steps has finetune",
}
OPTION = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[A-Za-z_][^=:\s]*)(?P<equals>=)?(?P<value>.*)", re.DOTALL)
COMPLETION = re.compile(r"(install|uninstall|query)=")


def lister() -> str:
    """The end of a message: which command lists all options."""
    return f"{typed_command()} --help lists all"


def prepared(arguments: list[str]) -> tuple[list[str], Namespace]:
    """Check a command line; return it as Hydra takes it, and its flags. ``--config-dir`` extends sys.path.

    Raises:
        UserError: if it is not a list of options with values, or names an unknown option.
    """
    arguments = with_suites(without_recipe(arguments))
    flags = parsed(arguments)
    arguments = with_presets(arguments, flags.config_dir)
    flags = parsed(arguments)
    if flags.config_dir is not None:
        extend_import_path([beside(flags.config_dir)])
    if not flags.shell_completion:
        check(flags.overrides, flags.config_dir)
        _check_folder(flags.overrides, flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides)
    return arguments, flags


def _check_folder(overrides: list[str], multirun: bool) -> None:
    """Refuse the folder of a single run for a sweep, and the reverse, as nothing would read it.

    Raises:
        UserError: if it is given, and the other one isn't.
    """
    ignored, read = ("hydra.sweep.dir", "hydra.run.dir")[:: -1 if multirun else 1]
    given = dict(override.partition("=")[::2] for override in overrides)
    if (value := given.get(ignored)) is not None and read not in given and "," not in value:
        kind, other = ("a sweep", "leave out -m") if multirun else ("a single run", "add -m for a sweep")
        raise UserError(f"{ignored}={value}: {kind} doesn't read it; write {read}={value}, or {other}")


def with_suites(arguments: list[str]) -> list[str]:
    """Rewrite ``task=[one,other]`` as a suite of these tasks; Hydra would merge their options into one task.

    Raises:
        UserError: if a list of tasks is empty, or names one twice.
    """
    rewritten = []
    for argument in arguments:
        several = re.fullmatch(r"task=\[([\w,\s]*)\]", argument)
        if several is None:
            rewritten.append(argument)
            continue
        names = [name.strip() for name in several[1].split(",")]
        if len(set(names)) < len(names) or "" in names:
            found = "no task between its brackets" if "" in names else "a task twice"
            raise UserError(f"{argument} has {found}; name each once: task=[one,other]")
        rewritten += ["task=suite", *(f"+task@task.tasks.{name}={name}" for name in names)]
    return rewritten


def parsed(arguments: list[str]) -> Namespace:
    """Parse Hydra's flags, with the options as ``overrides``.

    Raises:
        UserError: if a flag is unknown, or lacks its value.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; {typed_command()} --help lists what there is")

    with accepting_help_objects():
        parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    flags, unknown = parser.parse_known_args(arguments)
    known = sorted(
        flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")
    )
    for argument in unknown:
        raise UserError(_no_flag(argument, known, arguments))
    _check_flags(flags)
    return flags


def _no_flag(argument: str, known: list[str], arguments: list[str]) -> str:
    option = re.split(r"[=.]", argument.lstrip("-"))[0]
    if not argument.startswith("-"):
        backwards = arguments[::-1]
        before = backwards[backwards.index(argument) :]
        flag = next((one for one in before if one.startswith("-")), "a flag")
        return f"{argument} follows {flag}; put flags before or after all options"
    if option in KNOWN:
        name = argument.lstrip("-").partition("=")[0]
        return f"{argument}: options are written without dashes, with a = before the value: {name}=VALUE"
    choices = did_you_mean(argument.partition("=")[0], known, f"{typed_command()} --help")
    return f"{argument}: there is no such flag; {choices}"


def _check_flags(flags: Namespace) -> None:
    check_config_dir(flags.config_dir)
    if flags.shell_completion and not any(COMPLETION.match(override) for override in flags.overrides):
        raise UserError("--shell-completion needs a shell: install=bash, install=zsh or install=fish")
    modes = [flags.run, flags.multirun, flags.cfg is not None, flags.info is not None, flags.shell_completion]
    if sum(modes) > 1 or (flags.resolve and flags.cfg is None):
        raise UserError(
            "these flags don't go together: one of --run, --multirun (-m), --cfg and --info, and --resolve"
            " with --cfg"
        )


def check(overrides: list[str], config_dir: str | None = None) -> None:
    """Refuse options that Hydra would accept or refuse less clearly; warn if a key is given twice.

    Args:
        overrides: the options.
        config_dir: a folder with groups beside those of ``conf``.

    Raises:
        UserError: if an argument is not ``key=value``, its key is not an option, a folder or package of
            ``hydra.searchpath`` does not exist, or a chosen file has its ``@package`` line too late.
    """
    given: dict[str, str] = {}
    if config_dir is not None or searched(overrides):
        choices = Choices(config_dir, overrides)
        choices.check_places()
        choices.check_headers(overrides)
    for place, override in enumerate(overrides):
        match = OPTION.fullmatch(override)
        if match is None or (match["equals"] is None and match["sign"] != "~"):
            before = overrides[place - 1] if place else ""
            after = overrides[place + 1] if place + 1 < len(overrides) else ""
            raise UserError(_no_value(override, before, after))
        check_key(override, match, config_dir, overrides)
        _check_notation(override, match)
        key = match["key"]
        name = key if match["sign"] != "~" else f"~{key}"
        if given.get(name, override) != override:
            last = f"{override}, not {given[name]}"
            print(f"warning: {key} is given twice, and the last counts: {last}", file=sys.stderr)
        given[name] = override


def _check_notation(override: str, match: re.Match[str]) -> None:
    """Refuse signs, lists, separators and values that Hydra would accept or refuse less clearly.

    Raises:
        UserError: if there is one.
    """
    key, value = match["key"], match["value"]
    if match["sign"] == "~" and key in METHODS:
        others = f"{key}=OPTION{WITHOUT.get(key, '')}"
        raise UserError(f"{override} removes a required group; choose another with {others}")
    if match["sign"] in ("+", "++") and key in METHODS and not value.startswith(("[", "{")):
        raise UserError(f"{override}: a run has one {key}; leave the plus out: {key}={value}")
    if key in METHODS and key != "task" and value.startswith("["):
        sweep = f"-m {key}={value.strip('[]')}"
        raise UserError(f"{override}: a run has one {key}; choose one, or sweep over them with {sweep}")
    if key in ("hydra.launcher", "hydra.sweeper"):
        cluster = ", or cluster=slurm or local" if "launcher" in key else ""
        raise UserError(f"{override}: write {key.replace('.', '/')}={value}{cluster}")
    if key in ("hydra.run.dir", "hydra.sweep.dir") and value in ("", "''", '""'):
        raise UserError(
            f"{override} names no folder, so the run would write into this one; give one: {key}=FOLDER"
        )
    if key in ("hydra.run.dir", "hydra.sweep.dir", "cache") and value.strip("'\"").startswith("~/"):
        there = path_option(key, Path(value.strip("'\"")).expanduser())
        raise UserError(f"{override}: the shell left the ~ as it is; write {there}")
    if key == "hydra.job.chdir" and match["sign"] != "~" and value.lower() not in ("false", "null"):
        raise UserError(
            f"{key}={value}: paths of options and the cache, which runs share, are relative to the folder"
            " that the command is started in; leave it out: a run writes into its own folder anyway"
        )
    if value.startswith("="):
        raise UserError(f"{override} has one = too many: {key}={value.lstrip('=')}")


def check_key(override: str, match: re.Match[str], config_dir: str | None, overrides: Sequence[str]) -> None:
    """Refuse a key whose first part is not an option or a group.

    Args:
        override: the option.
        match: its parts.
        config_dir: a folder with groups beside those of ``conf``.
        overrides: all options; ``hydra.searchpath`` names further folders.

    Raises:
        UserError: if the first part of the key is not an option or a group.
    """
    first = re.split(r"[./@\[]", match["key"])[0]
    if first in PLACES and match["sign"] is None:
        raise UserError(f"{override}: {first} is not in the config; prefix it with + to add it: +{override}")
    if first not in (*KNOWN, *PLACES) and first not in Choices(config_dir, overrides).groups:
        raise UserError(f"{override}: there is no option {first!r}; {did_you_mean(first, KNOWN, lister())}")


def _no_value(argument: str, before: str, after: str) -> str:
    """A message about an argument that is not ``key=value``.

    Args:
        argument: the argument.
        before: the argument before it, which may be a part of the same option.
        after: the argument after it, likewise.
    """
    if before.endswith("=") or argument.startswith("="):
        return f"{before} {argument}: no spaces around the =: {before}{argument}"
    if after.startswith("="):
        joined = f"{argument}{after}{'VALUE' if after == '=' else ''}"
        return f"{argument} {after}: no spaces around the =: {joined}"
    if match := re.fullmatch(r"([A-Za-z_][\w.]*):\s*(.*)", argument):
        value = match[2] or ("VALUE" if "=" in after or not after else after)
        return f"{argument} has a colon, and options are written with a =: {match[1]}={value}"
    if re.split(r"[./@]", argument.lstrip("+~"))[0] in (*KNOWN, *PLACES):
        return f"{argument} has no value; write {argument}=VALUE"
    if "=" in before:
        together = quoted(f"{before} {argument}")
        return (
            f"{argument!r} is not an option with a value; if it belongs to the value before it, quote them"
            f" together: {together}"
        )
    choices = did_you_mean(argument, KNOWN, lister())
    return f"{argument!r} is not an option with a value, which is written key=value; {choices}"


def quoted(override: str) -> str:
    """Quote an option whose value has special characters, for Hydra and around that for the shell."""
    key, _, value = override.partition("=")
    return shlex.quote(text_option(key, value))
