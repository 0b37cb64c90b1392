"""Rows of whole pruning runs: block by block over the calibration data, against the published loops over one
sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import plain
from benchmarks.measure import Row, clock, medians
from benchmarks.models import Dense, smollm2, tokens
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel, quiet_forward
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda

PRUNERS: dict[str, Any] = {"wanda": Wanda(), "sparsegpt": SparseGPT(), "admm": ADMM()}
PUBLISHED = {"wanda": "wanda", "sparsegpt": "sparsegpt", "admm": "sparsegpt"}
"""{pruner: the published loop that it is measured against}."""
PROPAGATE = {
    "wanda": ("pruned", "dense"),
    "sparsegpt": ("pruned", "dense", "layer"),
    "admm": ("pruned", "layer", "compensated"),
}


def whole_run(
    name: str,
    model: PrunableModel,
    calibration: CalibrationSet,
    pruner: str,
    batch_size: int,
    runs: int,
    target: float,
) -> list[Row]:
    """The published loop, and ours with each kind of inputs; the model is dense again before each.

    The target is of the first kind, and of ``layer``, whose batch holds all samples.
    """
    dense, allocation = Dense(model), WaterFilling()(model, None, 0.5)
    masks: dict[str, dict[str, torch.Tensor]] = {}

    def published() -> None:
        with quiet_forward(model.module):
            plain.prune_by_sequences(model, calibration.batches(1), PUBLISHED[pruner], 0.5)

    def ours(propagate: str) -> None:
        size = len(calibration) if propagate in ("layer", "compensated") else batch_size
        prune(model, calibration, PRUNERS[pruner], allocation, size, propagate=propagate)

    sides: dict[str, Callable[[], Any]] = {"plain": published}
    sides |= {propagate: partial(ours, propagate) for propagate in PROPAGATE[pruner]}
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
    if PUBLISHED[pruner] != pruner:
        against = f"{PUBLISHED[pruner]}, {against}"
    same = sum(int((masks["pruned"][key] == mask).sum()) for key, mask in masks["plain"].items()) / sum(
        mask.numel() for mask in masks["plain"].values()
    )
    return [
        Row(
            name if propagate == "pruned" else f"{name}, propagate={propagate}",
            against,
            "s",
            middle["plain"],
            middle[propagate],
            middle["plain"] / middle[propagate],
            (">=", target) if propagate in ("pruned", "layer") else None,
            f"{same:.2%} of the mask" if propagate == "pruned" else "another result",
            {"seconds of each side": seconds} if propagate == "pruned" else {},
        )
        for propagate in PROPAGATE[pruner]
    ]


def rows(runs: int) -> Iterator[Row]:
    model = smollm2()
    for pruner, target in (("wanda", 1.5), ("sparsegpt", 2.0), ("admm", 1.0)):
        yield from whole_run(
            f"{pruner}, SmolLM2, 64 x 256", model, tokens(64, 256, 49152), pruner, 4, runs, target
        )
