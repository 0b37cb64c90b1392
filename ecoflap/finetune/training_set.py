"""The training split behind a run's calibration set, and its batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ecoflap.data.batch import Sample, samples_in
from ecoflap.data.calibration_set import CalibrationSet, by_shape, stack
from ecoflap.errors import UserError
from ecoflap.finetune.options import ScheduleOptions
from ecoflap.models.core.encoding import encoding_on_demand, pad_together
from ecoflap.models.core.prunable import PrunableModel

PLACE = "place of the sample"


@dataclass(frozen=True)
class Split:
    """Samples to train on and samples to hold out.

    Attributes:
        name: name of the data set.
        train: samples to train on.
        held_out: samples whose loss decides when to stop; empty for none.
    """

    name: str
    train: Sequence[Sample]
    held_out: Sequence[Sample]


def read_everything(
    reader: Any, model: PrunableModel, seed: int, samples: int | None = None
) -> CalibrationSet:
    """Read all samples that the calibrator draws from, in a random order, encoded when they are used.

    Rows that the calibrator lets the dense model generate are not part of them.

    Raises:
        UserError: if the data have no labels of their own.
    """
    if getattr(reader, "unlabelled", False):
        raise UserError(
            f"calibration={reader.name} has no labels but the dense model's own maps; use"
            " finetune=reconstruct, which needs none"
        )
    changes = {"samples": sys.maxsize if samples is None else samples}
    if hasattr(reader, "generated"):
        changes["generated"] = 0
    with encoding_on_demand():
        everything: CalibrationSet = replace(reader, **changes).load(model, seed)
    return everything


def split_of(
    schedule: ScheduleOptions,
    calibration: CalibrationSet | None,
    read: Callable[[int | None], CalibrationSet],
) -> Split:
    """The samples that a schedule trains on, and those that it holds out.

    Args:
        schedule: the schedule.
        calibration: the run's calibration set; None if it drew none.
        read: reads the first samples of the training split behind it; None for all.

    Raises:
        UserError: if the run has no such data, or no samples are left to train on.
    """
    if schedule.data == "training":
        return divide(read(schedule.samples), schedule.held_out)
    if calibration is None:
        raise UserError(
            "finetune.data=calibration needs the calibrate step; add it to steps, or use"
            " finetune.data=training"
        )
    return divide(calibration.take(schedule.samples or len(calibration)), schedule.held_out)


def divide(everything: CalibrationSet, held_out: int) -> Split:
    """Hold the last samples of a set out of training.

    Raises:
        UserError: if no samples are left to train on.
    """
    if held_out >= len(everything):
        raise UserError(
            f"finetune.held_out={held_out} leaves nothing to train on: there are {len(everything)} samples of"
            f" {everything.name}; hold out fewer"
        )
    border = len(everything) - held_out
    return Split(everything.name, everything.samples[:border], everything.samples[border:])


@dataclass(frozen=True)
class Collator:
    """Collates samples into a batch of groups, each with samples of one shape.

    Texts are not filled up to one length: which inputs may be padded, and with what, is a matter of the
    family, and a group gives each sample exactly the loss that it has alone. Families that compare the
    samples of a batch bring them to one length themselves, so they get one group.
    """

    model: PrunableModel

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Collate samples.

        Returns:
            ``groups``, the model inputs, and ``rows`` [batch], the places of their samples among the given
            ones, group by group.
        """
        padded = enumerate(pad_together(self.model, samples))
        numbered = [{**sample, PLACE: torch.tensor(place)} for place, sample in padded]
        groups = [stack(group) for group in by_shape(numbered).values()]
        return {"rows": torch.cat([group.pop(PLACE) for group in groups]), "groups": groups}


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let an error of a process that reads samples say what it says without one: torch adds a traceback.

    Raises:
        UserError: if a sample can't be read.
    """
    try:
        yield
    except UserError as error:
        reason = str(error).rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2].rstrip()
        if reason == str(error):
            raise
        raise UserError(reason) from None


def first_of(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The first ``count`` samples of a collated batch.

    For none, ``rows`` is empty, and one group has a sample, as a model can't be called without any.
    """
    rows = batch["rows"]
    parts = zip(batch["groups"], rows.split([samples_in(group) for group in batch["groups"]]), strict=True)
    groups = [
        {name: tensor[kept] for name, tensor in group.items()}
        for group, places in parts
        if (kept := places < max(count, 1)).any()
    ]
    return {"rows": rows[rows < count], "groups": groups}
