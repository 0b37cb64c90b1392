"""The names of models in a report, with what tells their weights from others of one name."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from ecoflap.storage.results.identity import is_path_key
from ecoflap.storage.sharing.base_model import model_name
from ecoflap.sweeps.report.runs import Run, short_paths
from ecoflap.sweeps.report.settings import flatten, is_path, shown

SHORT = 6  # characters of a fingerprint in a model's name


def name_models(runs: Sequence[Run]) -> list[str]:
    """The model of each run, with what else tells its weights from others of that name.

    The name is that on the model's card; equal weights have that of the first run. What else tells them is
    the choice of ``model`` if several read one path, the end of the path if the paths differ, and the start
    of the fingerprint if one path held several weights, such as of a checkpoint that was trained again.
    Settings such as the dtype, which change the fingerprint too, are left to the methods.
    """
    of_weights: dict[tuple[str, str], str] = {}
    choices, weights, paths, places = (defaultdict[str, set[str]](set) for _ in range(4))
    names = []
    for run in runs:
        choice = run.config["model"]["name"]
        same = (choice, _fingerprint(run) or _weights(run))
        names.append(name := of_weights.setdefault(same, model_name(run.config["model"], choice)))
        choices[name].add(choice)
        weights[name].add(_fingerprint(run))
        paths[name].add(_weights(run))
        places[_place(run)].add(_fingerprint(run))
    for index, (name, run) in enumerate(zip(names, runs, strict=True)):
        path, apart = _weights(run), []
        if len(choices[name]) > 1:
            apart.append(run.config["model"]["name"])
        if min(len(weights[name]), len(paths[name])) > 1:
            apart.append(short_paths(paths[name])[path])
        if len(places[_place(run)] - {""}) > 1:
            apart.append(_fingerprint(run)[:SHORT] or "unknown weights")
        if apart:
            names[index] = f"{name} ({', '.join(apart)})"
    return names


def _fingerprint(run: Run) -> str:
    """The fingerprint of a run's dense weights; empty if its record has none."""
    return str(run.result.model.get("fingerprint") or "")


def _place(run: Run) -> str:
    """The model that a run asked for: its paths and its settings."""
    settings = flatten(run.config["model"], "model")
    named = {key: shown(value) for key, value in settings.items() if not is_path(key, value)}
    return json.dumps([_weights(run), named], sort_keys=True)


def _weights(run: Run) -> str:
    """The paths of a run's weights."""
    paths = (value for key, value in run.config["model"].items() if is_path_key(key))
    return " + ".join(value for value in paths if isinstance(value, str))
