"""The recipe of a run: its resolved config without what belongs to one machine, as YAML.

``ecoflap run --config recipe.yaml`` repeats the run. Paths inside the package are written as ``package_file``
resolves them, so that they hold on another machine; other paths stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ecoflap.errors import UserError
from ecoflap.storage.file_names import CHECKPOINT, RECIPE
from ecoflap.storage.files import replacing
from ecoflap.storage.installation import package_origin
from ecoflap.storage.results.environment import REDACTED, redact
from ecoflap.storage.results.identity import stable
from ecoflap.storage.results.sources import own_parts

GROUPS = ("model", "calibration", "score", "allocation", "pruner", "finetune", "task")
INTERPOLATION = re.compile(r"(\\*)\$\{")
HEADER = """\
# The configuration of a run of ecoflap {version}. To repeat it, or a variation of it:
#   ecoflap run --config {name}
#   ecoflap run --config {name} sparsity=0.5 seed=1
# What auto chose is written out: with another pruner or mask, give these as auto again:
#   ecoflap run --config {name} pruner=sparsegpt score=auto allocation=auto propagate=auto
# Device, cache, tracking and output folders are those of the machine that repeats it.
"""
OWN = """\
# It needs {modules}, not part of ecoflap: installed, or beside FOLDER with --config-dir FOLDER.
"""
MISSING = "# Not known here, to be given beside it: {names} (such as {first}=CHOICE).\n"


def recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that decides what a run computes, without parts that it does not name."""
    known = stable(redact(dict(config)))
    if known.get("score", {}) is None and known.get("allocation") is not None:
        known["score"] = {"name": "none"}
    return {name: _portable(value) for name, value in known.items() if name not in GROUPS or _is_named(value)}


def _is_named(part: Any) -> bool:
    """Whether the config names a part; a call from Python may have been given an object instead."""
    if not isinstance(part, Mapping):
        return False
    if (target := part.get("_target_")) is not None:
        return not target.startswith("__main__.") and "<locals>" not in target  # which can't be imported
    return "tasks" in part or part.get("name") == "none"


def missing_groups(recipe: Mapping[str, Any]) -> list[str]:
    """The groups that a recipe lacks, to be given beside it."""
    return [group for group in GROUPS if group not in recipe and group != "finetune"]


def write_recipe(folder: Path, config: Mapping[str, Any], version: str | None) -> Path:
    """Write ``recipe.yaml`` into a folder, and return its path.

    Args:
        folder: the folder of a saved model.
        config: the resolved config of the run, or as much of it as a call from Python knows.
        version: of ecoflap; None if unknown.
    """
    values = recipe_of(config)
    text = HEADER.format(version=version or "an unknown version", name=RECIPE)
    if modules := dict.fromkeys(name.partition(".")[0] for name in own_parts(values).values()):
        text += OWN.format(modules=", ".join(modules))
    if missing := missing_groups(values):
        text += MISSING.format(names=", ".join(missing), first=missing[0])
    with replacing(folder / RECIPE) as temporary:
        temporary.write_text(text + OmegaConf.to_yaml(OmegaConf.create(values)), encoding="utf-8")
    return folder / RECIPE


def read_recipe(file: Path) -> dict[str, Any]:
    """The values of a recipe, with interpolations as they are written.

    Raises:
        UserError: if there is no such file, or it is not a recipe.
    """
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "there is no such file"
        inside = [place for place in (file / RECIPE, file / CHECKPOINT / RECIPE) if place.is_file()]
        raise UserError(
            f"--config {file}: {found}; give {inside[0] if inside else f'the {RECIPE} of a model'}"
        )
    try:
        values = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:  # YAML's and OmegaConf's
        raise UserError(
            f"--config {file} can't be read ({str(error).splitlines()[0]}); copy it anew"
        ) from error
    if not isinstance(values, dict) or not any(isinstance(values.get(group), dict) for group in GROUPS):
        raise UserError(
            f"--config {file} is not a recipe: it has none of {', '.join(GROUPS)}; give the {RECIPE} beside a"
            " saved model"
        )
    return {str(name): value for name, value in values.items()}


def _portable(value: Any) -> Any:
    """A value with the package's own paths by ``package_file``, and without secrets."""
    if isinstance(value, Mapping):
        return {name: _portable(inner) for name, inner in value.items() if inner != REDACTED}
    if isinstance(value, list | tuple):
        return [_portable(inner) for inner in value]
    if not isinstance(value, str):
        return value
    package = f"{package_origin()}/"
    if value.startswith(package):
        return f"${{package_file:{value.removeprefix(package)}}}"
    # A text, which OmegaConf would resolve; backslashes before it escape one another.
    return INTERPOLATION.sub(lambda found: 2 * found[1] + r"\${", value)
