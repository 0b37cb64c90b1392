"""The settings of runs: the config values that determine what a run measures, by dotted key."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ecoflap.storage.cache.code import PACKAGE
from ecoflap.storage.results.identity import VOLATILE, is_path_key, leaves
from ecoflap.sweeps.report.runs import Run

AXES = ("sparsity", "seed")
"""The keys in which the runs of one method differ."""
BESIDE = (*VOLATILE, "model.save", "model.save_lavis", "steps")
"""Config keys that change where or how a run executes, or which files it writes, but not what it measures."""


def fixed_and_varying(
    runs: Sequence[Run], named: Collection[str] = ()
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The keys of ``settings_of`` with one value in all runs, and those with several.

    Args:
        runs: the runs.
        named: the paths among the keys that count, because they are part of names.
    """
    configs = [settings_of(run) for run in runs]
    keys = dict.fromkeys(
        key
        for config in configs
        for key in config
        if key in named or not any(is_path(key, one.get(key)) for one in configs)
    )
    values = {key: sorted({shown(config.get(key)) for config in configs}, key=number_first) for key in keys}
    constant = {key: found[0] for key, found in values.items() if len(found) == 1}
    return constant, {key: found for key, found in values.items() if len(found) > 1}


def settings_of(run: Run) -> dict[str, Any]:
    """The values that determine what a run measured, by dotted key: only of the parts that the run used."""
    done, config = run.result.steps, dict(run.config)
    if "score" not in done:
        config["score"] = {"name": "none"}
    if "allocate" not in done:
        config.pop("allocation", None)
    if run.finetuner is None and "finetune" not in done:
        config.pop("finetune", None)
    data = run.result.data
    trained = "prune" in data or "finetune" in data  # on its training split
    if data.get("calibration", {}).get("unused") and not trained:
        config.pop("calibration", None)
    return flatten(config)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values that determine what a run measures, by dotted key.

    Parts of this package go by their names, and others by their classes too, as they may share a name.
    """
    return {
        key: value
        for key, value in leaves(config, prefix)
        if not (is_class(key) and str(value).startswith(f"{PACKAGE}."))
        and not any(f"{key}.".startswith(f"{one}.") for one in BESIDE)
    }


def is_class(key: str) -> bool:
    """Whether a config key is that of a part's class."""
    return key.rpartition(".")[2] == "_target_"


def is_path(key: str, value: Any) -> bool:
    """Whether a config value is a path in a file system or on a hub."""
    named = is_path_key(key) and not isinstance(value, int)  # images=8 is a number of them
    return named or (isinstance(value, str) and value.startswith("/"))


def shown(value: Any) -> str:
    """A config value as on the command line; 1.0 is shown as 1."""
    whole = isinstance(value, float) and value.is_integer()
    return value if isinstance(value, str) else json.dumps(int(value) if whole else value)


def number_first(value: str) -> tuple[bool, float, str]:
    """Sort key of values: numbers by size, then words."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, value
