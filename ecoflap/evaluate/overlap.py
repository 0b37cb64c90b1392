"""Nothing that a model is calibrated with or trained on may measure it."""

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
    """Compare what a calibration set, or a training split, was drawn from with what each task reads.

    Args:
        calibration: the set or the split.
        evaluations: the tasks.
        published: it is a whole training split. Some were published with a few pictures of the test split
            under other names, which nobody can choose away, so that they are only named.

    Raises:
        UserError: they have something in common.
    """
    for task, evaluation in evaluations.items():
        read: frozenset[str] = getattr(evaluation, "sources", frozenset())
        if (shared := shared_source(calibration.sources, read)) is not None:
            name, more = shared
            _refuse(calibration, task, f"{name}{f' and {more} others' if more else ''}")
        if same := copies(calibration.sources, read):
            both = (
                f"the picture {same[0][0]} ({same[0][1]} holds the same"
                f" bytes){f' and {len(same) - 1} others' if same[1:] else ''}"
            )
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
