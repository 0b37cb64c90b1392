"""Measure forms side by side: they take turns in one process, so that other load affects all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch

from ecoflap.console.progress import track
from ecoflap.errors import UserError
from ecoflap.models.core.expert_slices import refresh
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.device import resolve_device
from ecoflap.storage.results.bench import Bench, FormRow, Spread
from ecoflap.storage.results.hardware import name_of
from ecoflap.storage.results.metrics import first_metric
from ecoflap.sweeps.bench.forms import Form, SavedRun, forms_of, memory_bytes
from ecoflap.sweeps.bench.speed import Workload, operations_of, reads_cpu_time, seconds_of, workload_for

LOADS = 3


def measure(runs: Sequence[SavedRun], sizes: Sequence[int], repeats: int, tokens: int) -> Bench:
    """Load and time the dense model of some runs and every form of each.

    Args:
        runs: runs of one model.
        sizes: batch sizes.
        repeats: timed repeats of each form and batch size, after one that warms up.
        tokens: number of tokens that a language model writes for each prompt.

    Raises:
        UserError: if the runs are of several models, or one can't be loaded.
    """
    metric = _headline(runs)
    notes = [*_notes(runs, metric)]
    forms, models, loads = _load(forms_of(runs), notes)
    workload = workload_for(models[0], runs[0].record.config.get("calibration"), tokens)
    seconds = {size: _times(workload, models, size, repeats) for size in sizes}
    inputs = workload.prepare(sizes[0])
    rows = [
        FormRow(
            form.name,
            form.kind,
            None if form.optional else model.parameter_count(),
            None if form.optional else operations_of(workload, model, inputs),
            form.disk_bytes(model),
            memory_bytes(model.module),
            median(loads[place]),
            {str(size): _speed(times[place], size * workload.items) for size, times in seconds.items()},
            {str(size): _relative(times[0], times[place]) for size, times in seconds.items()},
            _value(form, metric),
            os.path.relpath(form.run.place.resolve(), runs[0].place.resolve()),
            form.run.record.digest(),
        )
        for place, (form, model) in enumerate(zip(forms, models, strict=True))
    ]
    return Bench(
        str(runs[0].record.model["name"]),
        workload.unit,
        workload.description,
        None if metric is None else "/".join(metric),
        _machine(models[0]),
        repeats,
        rows,
        notes,
    )


def _load(
    forms: Sequence[Form], notes: list[str]
) -> tuple[list[Form], list[PrunableModel], list[list[float]]]:
    """Load every form several times in turn.

    Args:
        forms: the forms.
        notes: gets a line for each optional form that can't be loaded.

    Returns:
        The forms that were loaded, the last model of each, and the seconds of each load.

    Raises:
        UserError: if another form can't be loaded.
    """
    models: dict[int, PrunableModel] = {}
    seconds: list[list[float]] = [[] for _ in forms]
    left_out = set[int]()
    rounds = [(place, form) for _ in range(LOADS) for place, form in enumerate(forms)]
    for place, form in track(rounds, "load"):
        models.pop(place, None)
        if place in left_out:
            continue
        started = time.perf_counter()
        try:
            models[place] = form.load()
        except UserError as error:
            if not form.optional:
                raise
            left_out.add(place)
            notes.append(f"{form.name} was not measured: {error}")
        seconds[place].append(time.perf_counter() - started)
    places = sorted(models)
    for model in models.values():
        own_memory(model)
    return (
        [forms[place] for place in places],
        [models[place] for place in places],
        [seconds[place] for place in places],
    )


def own_memory(model: PrunableModel) -> None:
    """Copy each weight into memory of its own, so that all forms lie there alike.

    ``from_pretrained`` maps weights from their file, and a SmolLM2 loaded so was 7 % slower on one CPU thread
    than the same in memory of its own.
    """
    for parameter in model.module.parameters():
        if type(parameter.data) is torch.Tensor:
            parameter.data = parameter.data.clone()
    refresh(model.module)


def _times(workload: Workload, models: Sequence[PrunableModel], size: int, repeats: int) -> list[list[float]]:
    """Seconds of each repeat of each model, in an order that turns by one model at every repeat."""
    inputs = workload.prepare(size)
    for model in models:
        seconds_of(workload, model, inputs)  # warms up
    times: list[list[float]] = [[] for _ in models]
    for repeat in track(range(repeats), f"batch of {size}", total=repeats):
        for turn in range(len(models)):
            place = (repeat + turn) % len(models)
            times[place].append(seconds_of(workload, models[place], inputs))
    return times


def _speed(seconds: Sequence[float], items: int) -> Spread:
    return _spread([items / one for one in seconds])


def _relative(dense: Sequence[float], own: Sequence[float]) -> Spread:
    return _spread([one / other for one, other in zip(dense, own, strict=True)])


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def _headline(runs: Sequence[SavedRun]) -> tuple[str, str] | None:
    """The first metric of the first task of the first run."""
    for values in runs[0].record.metrics.values():
        for task, metrics in values.items():
            if (name := first_metric(metrics)) is not None:
                return task, name
    return None


def _value(form: Form, metric: tuple[str, str] | None) -> float | None:
    if metric is None:
        return None
    task, name = metric
    return form.run.record.metrics.get(form.stage, {}).get(task, {}).get(name)


def _machine(model: PrunableModel) -> dict[str, Any]:
    return {
        "device": name_of(model.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "clock": "CPU time" if reads_cpu_time(model) else "wall clock",
        "dtype": str(next(model.module.parameters()).dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def _notes(runs: Sequence[SavedRun], metric: tuple[str, str] | None) -> Iterator[str]:
    """What is not in the table, and why; and which runs have the metric of other data than the first one."""
    if any(run.record.pattern == "2:4" for run in runs) and resolve_device("auto").type != "cuda":
        yield "2:4 ran as dense matrices: its kernel is for CUDA GPUs with sparse tensor cores"
    if metric is None:
        return
    first, *known = [run.record.data.get("tasks", {}).get(metric[0]) for run in runs]
    for run, data in zip(runs[1:], known, strict=True):
        if data is not None and data != first:
            yield (
                f"{run.name} was measured on other data than {runs[0].name} and the dense model, so that its"
                f" {'/'.join(metric)} can't be compared with theirs"
            )
