"""About how long each step of a run will take, measured on one sample and on one batch.

A step's time is a fixed part, such as the solves of a pruner, and a part per sample; two measurements tell
them apart. An evaluation is one batch, times the number of batches. No result of a measurement is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.protocol import Context
from ecoflap.console.progress import watching
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.evaluate.prediction_log import Item, PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune import driver
from ecoflap.run.plan import Plan
from ecoflap.score.scores import Scores

LONGEST = 60.0
"""Seconds after which a measurement stops, and goes by the units that it has done."""


class Estimate(NamedTuple):
    """About how long a step will take.

    Attributes:
        seconds: the time.
        at_most: whether a part that does not depend on the number of samples may be counted for each.
    """

    seconds: float
    at_most: bool = False


class _Enough(Exception):
    """Stops a measurement.

    Attributes:
        seconds: what the whole would take.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class FirstBatch(PredictionLog):
    """A prediction log that computes one batch, and stops with the time that all would take."""

    def run(self, batches: Sequence[list[Item]], compute: Callable[[list[Item]], Sequence[Any]]) -> list[Any]:
        """Compute the first batch."""
        start = time.perf_counter()
        compute(batches[0])
        raise _Enough((time.perf_counter() - start) * len(batches))


def step_times(plan: Plan, model: PrunableModel, calibration: CalibrationSet | None) -> dict[str, Estimate]:
    """{step: about how long it will take}, for the steps that few samples can tell of.

    The model is pruned meanwhile, and of no use afterwards.

    Args:
        plan: the plan of the run.
        model: the loaded model.
        calibration: the samples that the run will draw; None if it draws none.
    """
    times: dict[str, Estimate] = {}
    with _quiet():
        if "evaluate" in plan.steps:
            evaluations = [task.load(model) for task in plan.tasks.values()]
            each = sum(_seconds(partial(evaluation, model, FirstBatch())) for evaluation in evaluations)
            times["evaluate_dense"] = Estimate(each)
        scores = _time_score(plan, model, calibration, times)
        allocation = _time_allocate(plan, model, calibration, scores, times)
        if "prune" in plan.steps and not plan.pruner_trains:
            _time_prune(plan, model, calibration, allocation, times)
        if "evaluate" in plan.steps and "prune" in plan.steps:
            times["evaluate"] = times["evaluate_dense"]
    return times


def _time_score(
    plan: Plan, model: PrunableModel, calibration: CalibrationSet | None, times: dict[str, Estimate]
) -> Scores | None:
    """Time the scoring; returns the scores of the last measurement, or None if it stopped early."""
    if (scorer := plan.scoring) is None or calibration is None:
        return None
    found: list[Scores] = []

    def score(samples: CalibrationSet) -> None:
        found.append(scorer(model, samples, plan.config.seed))

    times["score"] = _extrapolated(score, calibration.take(scorer.samples), plan.config.batch_size)
    return found[-1] if found else None


def _time_allocate(
    plan: Plan,
    model: PrunableModel,
    calibration: CalibrationSet | None,
    scores: Scores | None,
    times: dict[str, Estimate],
) -> Allocation | None:
    """Time the allocation; returns that of the last measurement, or None if it stopped early."""
    if "allocate" not in plan.steps or plan.pruner.allocates:
        return None
    if plan.scoring is not None and scores is None:
        return None
    config, found = plan.config, list[Allocation]()

    def allocate(samples: CalibrationSet | None) -> None:
        context = Context(plan.pruner, samples, config.batch_size, config.seed, config.tokens)  # type: ignore[arg-type]
        found.append(plan.pruner.fitted(plan.allocator(model, scores, config.sparsity, context)))  # type: ignore[union-attr]

    times["allocate"] = (
        _extrapolated(allocate, calibration, config.batch_size)
        if plan.allocates_from_data and calibration is not None
        else Estimate(_seconds(partial(allocate, calibration)))
    )
    return found[-1] if found else None


def _time_prune(
    plan: Plan,
    model: PrunableModel,
    calibration: CalibrationSet | None,
    allocation: Allocation | None,
    times: dict[str, Estimate],
) -> None:
    config, pruner = plan.config, plan.pruner

    def prune(samples: CalibrationSet | None) -> None:
        if pruner.allocates:
            pruner.prune(model, samples, config.sparsity, lambda _: None)
            return
        assert allocation is not None
        driver.prune(
            model,
            samples,
            pruner,
            allocation,
            config.batch_size,
            on_block=lambda _: None,
            propagate=config.propagate,
            tokens=config.tokens,
            checked=True,
        )

    if not pruner.allocates and allocation is None:
        return
    if calibration is None:
        times["prune"] = Estimate(_seconds(partial(prune, None)))
    else:
        times["prune"] = _extrapolated(prune, calibration, config.batch_size)


def _extrapolated(work: Callable[[CalibrationSet], None], samples: CalibrationSet, batch: int) -> Estimate:
    """The time for all samples, from those for one and one batch; for one alone if a batch takes too long."""
    if len(samples) <= batch or batch < 2:
        return Estimate(_seconds(partial(work, samples)))
    one = _seconds(partial(work, samples.take(1)))
    if one * batch > LONGEST:
        return Estimate(one * len(samples), at_most=True)
    each = max(_seconds(partial(work, samples.take(batch))) - one, 0.0) / (batch - 1)
    return Estimate(one + each * (len(samples) - 1))


def _seconds(work: Callable[[], Any]) -> float:
    """The time that something takes; where that is too long, what it would take by the units done so far."""
    start = time.perf_counter()

    def watch(_: str, done: int, total: int | None) -> None:
        elapsed = time.perf_counter() - start
        if done and total and elapsed > LONGEST:
            raise _Enough(elapsed * total / done)

    try:
        with watching(watch):
            work()
    except _Enough as enough:
        return enough.seconds
    return time.perf_counter() - start


@contextmanager
def _quiet() -> Iterator[None]:
    """Log warnings only."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
