"""Rows of whole pruning runs: block by block over the calibration data, against the published loops over one
sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def whole_run(
    name: str,
    model: PrunableModel,
    calibration: CalibrationSet,
    pruner: str,
    batch_size: int,
    runs: int,
    target: float,
) -> list[Row]:
    """The published loop, ours, and ours with dense predecessors; the model is dense again before each."""
    dense, allocation = Dense(model), WaterFilling()(model, None, 0.5)
    masks: dict[str, dict[str, torch.Tensor]] = {}

    def published() -> None:
        with quiet_forward(model.module):
            plain.prune_by_sequences(model, calibration.batches(1), PUBLISHED[pruner], 0.5)

    sides: dict[str, Callable[[], Any]] = {
        "plain": published,
        "ours": lambda: prune(model, calibration, PRUNERS[pruner], allocation, batch_size),
        "dense": lambda: prune(
            model, calibration, PRUNERS[pruner], allocation, batch_size, propagate="dense"
        ),
    }
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
    same = sum(int((masks["ours"][key] == mask).sum()) for key, mask in masks["plain"].items()) / sum(
        mask.numel() for mask in masks["plain"].values()
    )
    one_pass = {"seconds of each side": seconds}
    return [
        Row(
            name,
            against,
            "s",
            middle["plain"],
            middle["ours"],
            middle["plain"] / middle["ours"],
            (">=", target),
            f"{same:.2%} of the mask",
            one_pass,
        ),
        Row(
            f"{name}, propagate=dense",
            against,
            "s",
            middle["plain"],
            middle["dense"],
            middle["plain"] / middle["dense"],
            None,
            "another result",
        ),
    ]


def rows(runs: int) -> Iterator[Row]:
    model = smollm2()
    for pruner, target in (("wanda", 1.5), ("sparsegpt", 2.0), ("admm", 1.0)):
        yield from whole_run(
            f"{pruner}, SmolLM2, 64 x 256", model, tokens(64, 256, 49152), pruner, 4, runs, target
        )
