"""``--config recipe.yaml``: the config of an earlier run takes the place of the default one.

Each group of the recipe becomes a choice named ``recipe`` of its group, and the rest a primary config, so
that overrides mean the same as without a recipe: ``pruner=sparsegpt`` chooses another pruner with its own
options, and ``pruner.mask=2:4`` changes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from ecoflap.errors import UserError, did_you_mean
from ecoflap.run.config import RunConfig
from ecoflap.run.lazy_store import store
from ecoflap.storage.sharing.recipe import GROUPS, missing_groups, read_recipe

FLAG = "--config"
RECIPE = "recipe"
DEFAULT = "config"


def without_recipe(arguments: Sequence[str]) -> list[str]:
    """Take ``--config FILE`` out of a command line, and store the recipe for ``primary_config``.

    Raises:
        UserError: if the flag lacks its file, the file is not a recipe, or the command line is one of a sweep
            or lacks a part that the recipe does not know.
    """
    _forget()
    rest, files = list[str](), list[str]()
    waiting = iter(arguments)
    for argument in waiting:
        if argument == FLAG:
            files.append(next(waiting, ""))
        elif argument.startswith(f"{FLAG}="):
            files.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    if not files:
        return rest
    if len(files) > 1 or not files[0]:
        raise UserError(f"{FLAG} takes one file: {FLAG} recipe.yaml")
    if {"-m", "--multirun"} & set(rest):
        raise UserError(f"{FLAG} repeats one run, and -m starts a sweep; leave one of the two out")
    values = read_recipe(Path(files[0]).expanduser())
    _check(files[0], values, rest)
    _store(values)
    return rest


def primary_config() -> str:
    """The name of the config that a run is composed from: the recipe's, if there is one."""
    return RECIPE if f"{RECIPE}.yaml" in ConfigStore.instance().repo else DEFAULT


def _check(file: str, values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Refuse a recipe with unknown options, and one that lacks a part that no override chooses.

    Raises:
        UserError: see above.
    """
    known = [entry.name for entry in fields(RunConfig)]
    for name in values:
        if name not in known:
            raise UserError(f"{FLAG} {file}: there is no option {name!r}; {did_you_mean(name, known)}")
    for group in missing_groups(values):
        if not any(override.startswith(f"{group}=") for override in overrides):
            raise UserError(
                f"{FLAG} {file} says nothing of the {group}, which was given as an object in Python; add"
                f" {group}=CHOICE (ecoflap explain {group} lists them)"
            )


def _store(values: dict[str, Any]) -> None:
    """Store a recipe's groups and its primary config in Hydra's store."""
    parts = {name: value for name, value in values.items() if name in GROUPS}
    for group, part in parts.items():
        store(group, RECIPE, partial(dict, part))
    defaults = [DEFAULT, *({f"override {group}": RECIPE} for group in parts), "_self_"]
    rest = {name: value for name, value in values.items() if name not in parts}
    ConfigStore.instance().store(name=RECIPE, node={"defaults": defaults, **rest})


def _forget() -> None:
    """Remove an earlier command line's recipe from Hydra's store."""
    repo = ConfigStore.instance().repo
    for place in (repo, *(repo.get(group, {}) for group in GROUPS)):
        place.pop(f"{RECIPE}.yaml", None)
