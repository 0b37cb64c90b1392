"""Refuse to evaluate a model on data that it is calibrated with or trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NoReturn

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.sources import copies, is_picture, shared_source
from ecoflap.errors import UserError
from ecoflap.evaluate.protocol import Evaluation

log = logging.getLogger(__name__)


def refuse_overlap(
    calibration: CalibrationSet, evaluations: Mapping[str, Evaluation], published: bool = False
) -> None:
    """Compare the sources of a calibration set, or a training split, with those of each task.

    Args:
        calibration: the calibration set or training split.
        evaluations: the tasks.
        published: whether it is a complete published training split. Some contain a few images of the test
            split under other names; since users can't avoid that, it is a warning only.

    Raises:
        UserError: if they have something in common.
    """
    for task, evaluation in evaluations.items():
        read: frozenset[str] = getattr(evaluation, "sources", frozenset())
        if (shared := shared_source(calibration.sources, read)) is not None:
            name, more = shared
            _refuse(calibration, task, f"{name}{f' and {more} others' if more else ''}")
        same = sorted(copies(calibration.sources, read), key=lambda pair: is_picture(pair[1]))
        if same:
            (one, other), more = same[0], len(same) - 1
            noun, others = "picture" if is_picture(other) else "file", f" and {more} others" if more else ""
            both = f"the {noun} {one} ({other} holds the same bytes){others}"
            if not (published and is_picture(other)):
                _refuse(calibration, task, both)
            log.warning(
                "the training split of calibration=%s and task=%s both read %s", calibration.name, task, both
            )


def _refuse(calibration: CalibrationSet, task: str, both: str) -> NoReturn:
    raise UserError(
        f"calibration={calibration.name} and task={task} both read {both}: a model must not be measured on"
        " what it was calibrated with or trained on. Give one of them other data with calibration.path or"
        " task.path, another split with calibration.split or task.split, or choose another calibration or"
        " task"
    )
