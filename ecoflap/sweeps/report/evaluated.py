"""What runs were evaluated on, where the same settings read other data, as from another folder."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

from ecoflap.sweeps.report.model_names import SHORT
from ecoflap.sweeps.report.runs import Run, short_paths
from ecoflap.sweeps.report.settings import flatten, is_path, shown

HASHES = ("inputs", "tokens", "choices")
"""What records call the hashes of a task's data."""


def name_data(runs: Sequence[Run], models: Sequence[str]) -> list[str]:
    """The model of each run, with what tells the data of its tasks from others that the same settings read.

    Settings that change the data, such as a limit or a prompt, are left to the methods. Of data that vary
    together one is enough, and data that a record does not know set nothing apart.

    Args:
        runs: the runs.
        models: the name of each one's model.
    """
    names, settings = list(models), list(map(_settings, runs))
    tasks = sorted({task for run in runs for task in run.result.data.get("tasks", {})})
    for task, kind in ((task, kind) for task in tasks for kind in HASHES):
        alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, group in enumerate(zip(names, settings, strict=True)):
            alike[group].append(index)
        for members in alike.values():
            apart = _apart([runs[index] for index in members], task, kind)
            for index, words in zip(members, apart, strict=True):
                names[index] += words
    return names


def _apart(runs: Sequence[Run], task: str, kind: str) -> list[str]:
    """For each run what tells its data from those of the others; empty if they all have the same.

    That is the end of a path if all have one and each path held other data, and else the start of a hash.
    """
    hashes = [_hash(run, task, kind) for run in runs]
    if len(set(hashes) - {""}) < 2:
        return [""] * len(runs)
    paths = [_paths(run, task) for run in runs]
    counts = {len(set(paths)), len(set(hashes)), len(set(zip(paths, hashes, strict=True)))}
    if len(counts) == 1 and "" not in (*paths, *hashes):
        short = short_paths(paths)
        return [f" ({task} from {short[path]})" for path in paths]
    return [f" ({task} {kind} {_start(one)})" for one in hashes]


def _settings(run: Run) -> str:
    """The options of a run's model and tasks, without paths."""
    parts = {key: run.config.get(key) or {} for key in ("model", "task")}
    options = {
        key: shown(value)
        for key, value in flatten(parts).items()
        if value is not None and not is_path(key, value)
    }
    return json.dumps(options, sort_keys=True)


def _hash(run: Run, task: str, kind: str) -> str:
    """A hash of a task's data; empty if the record has none."""
    return str(run.result.data.get("tasks", {}).get(task, {}).get(kind) or "").strip()


def _paths(run: Run, task: str) -> str:
    """The paths of a task's data; empty if it has none."""
    options = run.config.get("task") or {}
    options = flatten(options.get("tasks", {}).get(task, options))
    return " + ".join(
        str(value) for key, value in options.items() if value is not None and is_path(key, value)
    )


def _start(value: str) -> str:
    """The start of a hash; of several values in one, that of a hash of them all."""
    if value and not value.isalnum():
        value = hashlib.blake2b(value.encode()).hexdigest()
    return value[:SHORT] or "unknown"
