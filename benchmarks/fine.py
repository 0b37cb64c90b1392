"""Rows of whole pruning runs: block by block over the calibration data, against the published loops over one
sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks import plain
from benchmarks.measure import Row, clock, medians
from benchmarks.models import Dense, smollm2, tokens
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda


class Case(NamedTuple):
    """A pruner, and what it is measured against.

    Attributes:
        pruner: ours.
        published: the published loop.
        propagate: the inputs that ours prunes from.
        target: how many times as fast ours should be with ``pruned`` and ``layer``.
    """

    pruner: LayerPruner
    published: str
    propagate: tuple[str, ...]
    target: float


CASES = {
    "wanda": Case(Wanda(), "wanda", ("pruned", "dense"), 1.5),
    "sparsegpt": Case(SparseGPT(), "sparsegpt", ("pruned", "dense", "layer"), 2.0),
    "admm": Case(ADMM(), "sparsegpt", ("pruned", "layer", "compensated"), 1.0),
    "admm of 4 iterations": Case(ADMM(iterations=4, schedule=3), "sparsegpt", ("layer",), 2.0),
}


def whole_run(
    name: str,
    model: PrunableModel,
    calibration: CalibrationSet,
    case: Case,
    batch_size: int,
    runs: int,
) -> list[Row]:
    """The published loop, and ours with each kind of inputs; the model is dense again before each.

    With ``layer`` and ``compensated`` a batch holds all samples.
    """
    dense, allocation = Dense(model), WaterFilling()(model, None, 0.5)
    masks: dict[str, dict[str, torch.Tensor]] = {}

    def published() -> None:
        with quiet_forward(model.module):
            plain.prune_by_sequences(model, calibration.batches(1), case.published, 0.5)

    def ours(propagate: str) -> None:
        size = len(calibration) if propagate in ("layer", "compensated") else batch_size
        prune(model, calibration, case.pruner, allocation, size, propagate=propagate)

    sides: dict[str, Callable[[], Any]] = {"plain": published}
    sides |= {propagate: partial(ours, propagate) for propagate in case.propagate}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(runs):
        for side, work in sides.items():
            dense.restore(model)
            started = clock()
            work()
            seconds[side].append(clock() - started)
            masks[side] = {layer.name: layer.weight.detach() != 0 for layer in model.layers}
    dense.restore(model)
    middle, against = medians(seconds), "one sequence at a time, a statistic per layer, two passes"
    if case.published != case.pruner.name:
        against = f"{case.published}, {against}"

    def agreement(propagate: str) -> str:
        if propagate != "pruned":
            return "another result"
        same = sum(int((masks[propagate][key] == mask).sum()) for key, mask in masks["plain"].items())
        return f"{same / sum(mask.numel() for mask in masks['plain'].values()):.2%} of the mask"

    return [
        Row(
            name if propagate == "pruned" else f"{name}, propagate={propagate}",
            against,
            "s",
            middle["plain"],
            middle[propagate],
            middle["plain"] / middle[propagate],
            (">=", case.target) if propagate in ("pruned", "layer") else None,
            agreement(propagate),
            {"seconds of each side": seconds} if propagate == case.propagate[0] else {},
        )
        for propagate in case.propagate
    ]


def rows(runs: int) -> Iterator[Row]:
    model = smollm2()
    for name, case in CASES.items():
        yield from whole_run(f"{name}, SmolLM2, 64 x 256", model, tokens(64, 256, 49152), case, 4, runs)
