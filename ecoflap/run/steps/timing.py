"""About how long each step of a run will take, measured on two samples and on one batch.

A step's time is a fixed part, such as the solves of a pruner, and a part per sample; two measurements tell
them apart. Each stops when it has taken long enough, and goes by the steps or blocks that it has done. An
evaluation is one batch, times the number of batches. No result of a measurement is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from typing_extensions import override

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.protocol import Context, checked_allocation
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.console.logs import silenced
from ecoflap.console.progress import watching
from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate.prediction_log import Item, PredictionLog
from ecoflap.evaluate.protocol import Evaluation
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune import driver
from ecoflap.run.plan import Plan
from ecoflap.run.steps.training_time import training_seconds
from ecoflap.score.scores import Scores

LONGEST = 20.0
"""Seconds after which a measurement stops, and goes by the units that it has done."""


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

    @override
    def run(self, batches: Sequence[list[Item]], compute: Callable[[list[Item]], Sequence[Any]]) -> list[Any]:
        """Compute the first batch."""
        start = time.perf_counter()
        compute(batches[0])
        raise _Enough((time.perf_counter() - start) * len(batches))


def step_times(
    plan: Plan,
    model: PrunableModel,
    evaluations: Sequence[Evaluation],
    calibration: CalibrationSet | None,
    training: Sequence[Sample] | None = None,
) -> dict[str, float]:
    """{step: about how long it will take, in seconds}, for the steps that few samples can tell of.

    The model is pruned meanwhile, and of no use afterwards.

    Args:
        plan: the plan of the run.
        model: the loaded model.
        evaluations: of the tasks, if the run evaluates.
        calibration: the samples that the run will draw; None if it draws none.
        training: the samples that it will fine-tune on; None if it doesn't.

    Raises:
        UserError: if a step refuses its samples or the model.
        NumericalError: if a NaN or an infinity appears.
    """
    times: dict[str, float] = {}
    with silenced(logging.INFO):
        if "evaluate" in plan.steps:
            each = sum(_seconds(partial(evaluation, model, FirstBatch())) for evaluation in evaluations)
            times["evaluate_dense"] = each
        scores = _time_score(plan, model, calibration, times)
        allocation = _time_allocate(plan, model, calibration, scores, times)
        if "prune" in plan.steps and not plan.pruner_trains:
            _time_prune(plan, model, calibration, allocation, times)
        if "evaluate" in plan.steps and "prune" in plan.steps:
            times["evaluate"] = times["evaluate_dense"]
        if plan.finetuner is not None:
            _time_finetune(plan, model, training, times)
    return times


def _time_score(
    plan: Plan, model: PrunableModel, calibration: CalibrationSet | None, times: dict[str, float]
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
    times: dict[str, float],
) -> Allocation | None:
    """Time the allocation; returns that of the last measurement, or None if it stopped early."""
    config, pruner = plan.config, plan.pruner
    if "allocate" not in plan.steps or pruner.allocates:
        return None
    if plan.scoring is not None and scores is None:
        return None
    found = list[Allocation]()

    def allocate(samples: CalibrationSet | None) -> None:
        context = Context(pruner, samples, config.batch_size, config.seed, config.tokens)
        allocation = checked_allocation(plan.allocator, model, scores, config.sparsity, context)
        found.append(pruner.fitted(allocation))

    if plan.allocates_from_data and calibration is not None:
        passes = partial(plan.allocator.passes, sparsity=config.sparsity)
        times["allocate"] = _extrapolated(allocate, calibration, config.batch_size, passes)
    else:
        times["allocate"] = _seconds(partial(allocate, calibration))
    return found[-1] if found else None


def _time_prune(
    plan: Plan,
    model: PrunableModel,
    calibration: CalibrationSet | None,
    allocation: Allocation | None,
    times: dict[str, float],
) -> None:
    config, pruner = plan.config, plan.pruner

    def prune(samples: CalibrationSet | None) -> None:
        if pruner.allocates:
            pruner.prune(model, samples, 0.0 if pruner.removes_units else config.sparsity, config.seed)
            return
        driver.prune(
            model,
            samples,
            pruner,
            allocation or pruner.fitted(WaterFilling()(model, None, config.sparsity)),
            config.batch_size,
            on_block=lambda _: None,
            propagate=config.propagate,
            tokens=config.tokens,
        )

    if calibration is None:
        times["prune"] = _seconds(partial(prune, None))
    else:
        times["prune"] = _extrapolated(prune, calibration, config.batch_size)


def _time_finetune(
    plan: Plan, model: PrunableModel, training: Sequence[Sample] | None, times: dict[str, float]
) -> None:
    config = plan.config
    assert plan.finetuner is not None
    if training is not None:
        seconds = training_seconds(plan.finetuner, model, training, config.sparsity, config.batch_size)
        times |= {} if seconds is None else {"finetune": seconds}
    if "evaluate" in plan.steps:
        times["evaluate_finetuned"] = times["evaluate_dense"]


def _extrapolated(
    work: Callable[[CalibrationSet], None],
    samples: CalibrationSet,
    batch: int,
    passes: Callable[[int], float] = float,
) -> float:
    """The seconds that all samples will take, from those of two and of one batch.

    Two, as a loss that compares the samples of a batch, such as contrastive, says nothing of one. What
    refuses so few may accept all, as where no picture is among the first: then all are run.

    Args:
        work: what is timed.
        samples: all of them.
        batch: how many are a batch.
        passes: how many samples all passes together read, by the number of samples.

    Raises:
        UserError: if the work refuses all samples.
        NumericalError: if a NaN or an infinity appears with all samples.
    """
    few = min(batch, 2)
    more = min(max(batch, 2 * few), len(samples))
    if more == len(samples):
        return _seconds(partial(work, samples))
    try:
        first = _seconds(partial(work, samples.take(few)))
        rest = max(_seconds(partial(work, samples.take(more))) - first, 0.0)
    except (UserError, NumericalError):
        return _seconds(partial(work, samples))
    seen, asked = (passes(count) - passes(few) for count in (more, len(samples)))
    return first + rest * asked / seen if seen else first


def _seconds(work: Callable[[], Any]) -> float:
    """The seconds that something takes; where they are too many, what it would take by the units done."""
    try:
        with watching(_Stopwatch()):
            start = time.perf_counter()
            work()
    except _Enough as enough:
        return enough.seconds
    return time.perf_counter() - start


class _Stopwatch:
    """A watcher that stops work when it has taken ``LONGEST``, with the time that the whole would take.

    It stops only between two units of the outermost loop that is not at its end, when two of them are done:
    the first unit may hold what is done once, such as gathering statistics.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: dict[str, float] = {}  # when a loop had done its first unit
        self._left: dict[str, int] = {}  # units of each loop, in the order in which they began

    def __call__(self, loop: str, done: int, total: int | None) -> None:
        """Note the progress of a loop.

        Raises:
            _Enough: if the work is too long.
        """
        now = time.perf_counter()
        self._left[loop] = total - done if total else 0
        if done == 1:
            self._first[loop] = now
        outermost = next((one for one, left in self._left.items() if left > 1), None)
        if total and done > 1 and loop == outermost and now - self._start > LONGEST:
            first = self._first[loop]
            raise _Enough(first - self._start + (now - first) * (total - 1) / (done - 1))
