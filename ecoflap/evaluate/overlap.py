"""Nothing that a model is calibrated with or trained on may measure it."""

from __future__ import annotations

from collections.abc import Mapping

from ecoflap.calibrate.samples import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.evaluate.task import Evaluation


def refuse_overlap(calibration: CalibrationSet, evaluations: Mapping[str, Evaluation]) -> None:
    """Compare what a calibration set, or a training split, was drawn from with what each task reads.

    Raises:
        UserError: they have something in common.
    """
    for task, evaluation in evaluations.items():
        shared = sorted(calibration.sources & getattr(evaluation, "sources", frozenset()))
        if shared:
            raise UserError(
                f"calibration={calibration.name} and task={task} both read {shared[0]}{f' and {len(shared) - 1} others' if shared[1:] else ''}: "
                "a model must not be measured on what it was calibrated with or trained on. Give one of them other data with calibration.path or "
                "task.path, another split with calibration.split or task.split, or choose another calibration or task"
            )
