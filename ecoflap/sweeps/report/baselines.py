"""What a method is compared with: the uniform allocation, and the same method of the first sweep."""

from __future__ import annotations

from collections.abc import Iterable

from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.metrics import MetricTable
from ecoflap.sweeps.report.runs import SWEEP, Run
from ecoflap.sweeps.report.settings import AXES, is_class, is_path, settings_of, shown

OF_COARSE = ("score.", "allocation.")


def uniform_beside(method: Method, table: MetricTable) -> Method | None:
    """The uniform allocation that was run as the method was; None for itself, or if there is none.

    Nothing may differ but score and allocation, and ``propagate``, which ``auto`` chooses by the allocation;
    one with the same ``propagate`` comes before others. Only keys that both have are compared, and the
    classes of parts. Paths may differ, but not the calibration samples that each seed drew.
    """
    if method.score in ("none", "global"):
        return None
    runs = table.section.by_method
    own = _others(runs[method][0])
    like = "none", method.pruner, method.sweep, runs[method][0].finetuner

    def is_beside(one: Method) -> bool:
        if (one.score, one.pruner, one.sweep, runs[one][0].finetuner) != like:
            return False
        others = _others(runs[one][0])
        keys = (others.keys() & own.keys()) | set(filter(is_class, others.keys() | own.keys()))
        alike = all(others.get(key) == own.get(key) for key in keys)
        return alike and _drew_the_same(runs[one], runs[method])

    found = list(filter(is_beside, table.cells))
    propagate = runs[method][0].config.get("propagate")
    alike = (one for one in found if runs[one][0].config.get("propagate") == propagate)
    return next(alike, found[0] if found else None)


def _others(run: Run) -> dict[str, str]:
    """The settings of a run but for its coarse stage, its place in the sweep, and paths."""
    return {
        key: shown(value)
        for key, value in settings_of(run).items()
        if key not in (*AXES, SWEEP, "propagate")
        and not key.startswith(OF_COARSE)
        and not is_path(key, value)
    }


def _drew_the_same(some: Iterable[Run], others: Iterable[Run]) -> bool:
    """Whether runs of two methods share a sparsity and seed, and wherever they do, their calibration samples.

    A run that used none, such as one of magnitude with the uniform allocation, agrees with any.
    """
    drawn = {(run.sparsity, run.seed): run.samples for run in some}
    pairs = [(drawn[at], run.samples) for run in others if (at := (run.sparsity, run.seed)) in drawn]
    return bool(pairs) and all(one == other for one, other in pairs if one and other)


def in_first_sweep(method: Method, table: MetricTable) -> Method | None:
    """The same method of the first sweep; None in that sweep, or if it has no such method."""
    first = table.section.runs[0].config.get(SWEEP)

    def others(one: Method) -> tuple[object, ...]:
        return one.pruner, one.score, tuple(setting for setting in one.settings if setting[0] != SWEEP)

    if method.sweep == first:
        return None
    return next((one for one in table.cells if one.sweep == first and others(one) == others(method)), None)
