"""What a model card says about how the model was made: weights, data, command, code and versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ecoflap.storage.file_names import MASKS, RECIPE, RESULT
from ecoflap.storage.results.record import Result
from ecoflap.storage.results.sources import own_parts
from ecoflap.storage.sharing.base_model import shown_path
from ecoflap.storage.sharing.recipe import missing_groups, recipe_of


def origin(result: Result, folder: Path) -> Iterator[str]:
    """The lines on what a saved model was made from, and how to make it again.

    Args:
        result: the record of the run.
        folder: the folder of the saved model.
    """
    details = [*_read_from(result.config.get("model")), f"fingerprint `{result.model['fingerprint']}`"]
    yield f"- Dense model: {', '.join(details)}."
    calibration = result.data.get("calibration")
    if calibration is None:
        yield "- Calibration: none."
    elif calibration.get("unused"):
        count = calibration["samples"]
        yield f"- Calibration: none; {count:,} samples were drawn, and no step looked at them."
    else:
        count, name = calibration["samples"], calibration["name"]
        read = _read_from(result.config.get("calibration"))
        details = [*read, f"fingerprint `{calibration['fingerprint']}`"]
        yield f"- Calibration: {count:,} samples of `{name}`, {', '.join(details)}."
    yield from _trained(result)
    yield from _measured(result)
    yield from _evaluated(result)
    yield from _repeating(result)
    known = {name: value for name, value in result.versions.items() if value and name != "code"}
    yield "- Versions: " + ", ".join(f"{name} {value}" for name, value in known.items()) + "."
    if result.git is not None:
        changes = ", with uncommitted changes" if result.git["dirty"] else ""
        yield f"- Commit of ecoflap: `{result.git['commit']}`{changes}."
    if (folder / MASKS).is_file():
        yield f"- `{MASKS}` has the masks, one bit per weight; `ecoflap.storage.masks.load_masks` reads them."
    yield f"- `{RESULT}` is the whole record; `ecoflap verify FOLDER` checks the weights against it."


def _trained(result: Result) -> Iterator[str]:
    """What a pruner that trains, and the fine-tuning, have read."""
    read = _read_from(result.config.get("calibration"))
    for step, what in (("prune", "Training by the pruner"), ("finetune", "Fine-tuning")):
        if data := result.data.get(step):
            samples = f"{data['samples']:,} samples of `{data['name']}`"
            yield f"- {what}: {', '.join([samples, *read])}."


def _measured(result: Result) -> Iterator[str]:
    """How many samples the scores read, and how the pruner's inputs of layers were measured."""
    scores = result.scores or {}
    if isinstance(count := scores.get("details", {}).get("samples"), int):
        yield f"- Scores: `{scores['method']}` on {count:,} samples."
    named = [f"{key}={result.config[key]}" for key in ("propagate", "tokens") if key in result.config]
    if named and result.sparsity.get("errors") is not None:  # which only a pruner has that measured inputs
        yield f"- Inputs of layers: {', '.join(named)}."


def _evaluated(result: Result) -> Iterator[str]:
    """What each task has read, where its config names a file or a length."""
    options = result.config.get("task") or {}
    members = options.get("tasks") or {options.get("name"): options}
    for name, member in members.items():
        if details := _read_from(member):
            yield f"- Task `{name}`: {', '.join(details)}."


def _read_from(part: Mapping[str, Any] | None) -> list[str]:
    """The path of a config and the tokens of a window, where it has them."""
    path, length = (None if part is None else part.get(key) for key in ("path", "sequence_length"))
    named = [] if path is None else [f"`{shown_path(str(path))}`"]
    return named if length is None else [*named, f"sequence_length={length}"]


def _repeating(result: Result) -> Iterator[str]:
    """The command that repeats the run, and the user's own code that it needs."""
    recipe = recipe_of(result.config)
    command, asked = f"ecoflap run --config {RECIPE}", missing_groups(recipe)
    given = "".join(f" {group}=CHOICE" for group in asked)
    yield f"- To repeat it: `{command}{given}`{', as these were objects in Python' if asked else ''}."
    hashes = {key: part["hash"] for key, part in result.sources["parts"].items()}
    if own := own_parts(recipe):
        named = [
            f"`{name}`{f' (source `{hashes[key]}`)' if hashes.get(key) else ''}" for key, name in own.items()
        ]
        yield (
            f"- It needs {', '.join(named)}, not part of ecoflap: with their modules installed, or beside"
            " FOLDER with `--config-dir FOLDER`."
        )
