"""Refuse to evaluate a model on data that it is calibrated with or trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NoReturn

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.sources import copies, shared_source
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
        if same := copies(calibration.sources, read):
            others = f" and {len(same) - 1} others" if same[1:] else ""
            both = f"the picture {same[0][0]} ({same[0][1]} holds the same bytes){others}"
            if not published:
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
