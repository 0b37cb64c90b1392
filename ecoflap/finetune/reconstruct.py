"""Train each pruned block to reproduce the dense block's output, without labels and end-to-end gradients.

Two streams of the same calibration samples run through the tower side by side: one through the dense model,
one through the pruned one, whose blocks before the current one are already trained. A block B with weights W
learns to undo what its predecessors and its own mask have changed,

    min over the kept W:  sum over batches of ||B(x'; W) - y||^2 / ||y||^2,

where y is the dense block's output of a batch of the dense stream, and x' that batch of the pruned stream.
Biases and norms of the block are trained too. The other arguments of later blocks (such as position biases
from a table in a block) are not, as they were computed before, nor is what another block shares, which would
change that block after its outputs were computed.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from typing_extensions import override

from ecoflap.blocks.capture import Flow
from ecoflap.blocks.footprint import WIDE
from ecoflap.blocks.stream import Stream
from ecoflap.console.progress import track
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.finetune.footprint import TrainingFootprint, masked_sizes
from ecoflap.finetune.job import Job, Point, Training
from ecoflap.finetune.masked_parameters import masked_parameters
from ecoflap.finetune.options import ReconstructOptions
from ecoflap.finetune.protocol import Finetuner
from ecoflap.models.core.forward_modes import in_float32, quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reconstruct(ReconstructOptions, Finetuner):
    """Layer-wise reconstruction."""

    def __post_init__(self) -> None:
        require_positive("finetune", self, "samples", "epochs")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"finetune.learning_rate={self.learning_rate} must be above 0, and finite")

    @override
    def footprint(self, model: PrunableModel, sparsity: float) -> TrainingFootprint:
        """Two models, dense and pruned; of one block, a copy, and what is trained and built of it."""
        sizes = [masked_sizes(list(block.layers), sparsity) for block in model.blocks if block.layers]
        masked, kept = max(sizes)
        weights = WIDE * (2 * model.parameter_count() + 2 * masked + kept) + masked
        return TrainingFootprint(weights, kept, float32=True, by_block=True, less_weights=("finetune=lora",))

    @override
    def passes(self, samples: int) -> float:
        """Each block runs the samples in each epoch, and forward once for its target, errors and output."""
        return (self.epochs + 4 / 3) * min(samples, self.samples or samples)

    @override
    def finetune(self, job: Job) -> Training:
        """Train each block of the pruned towers; refuse a run that drew no calibration samples."""
        if job.calibration is None:
            raise UserError("finetune=reconstruct looks at the calibration samples; add calibrate to steps")
        calibration = job.calibration.take(self.samples or len(job.calibration))
        batches, dense = calibration.batches(job.batch_size), job.dense()
        work = [
            (tower, index) for tower in job.model.towers if tower.layers for index in range(len(tower.blocks))
        ]
        curve: list[Point] = []
        trained = 0
        with (
            quiet_forward(job.model.module),
            quiet_forward(dense.module),
            in_float32(job.model.module),
            in_float32(dense.module),
        ):
            for step, (tower, index) in enumerate(track(work, "reconstruct", total=len(work)), start=1):
                if index == 0:
                    pair = _Pair(
                        Flow(dense, _same(dense.every_tower, tower), batches), Flow(job.model, tower, batches)
                    )
                point, count = self._train_block(job, pair, index, step)
                curve.append(point)
                trained += count
                job.show(point)
        return Training(
            self.name, {"name": calibration.name, "samples": len(calibration), "held_out": 0}, trained, curve
        )

    def _train_block(self, job: Job, pair: _Pair, index: int, step: int) -> tuple[Point, int]:
        """Train one block; returns its errors and the number of values that were trained."""
        block, streams = pair.pruned.tower.blocks[index], pair.pruned.enter(index)
        targets, trained = pair.targets(index), 0
        before = after = _error(block, index, streams, targets)
        if block.layers:
            masked = [layer for layer in block.layers if layer.name in job.masks]
            saved = copy.deepcopy(block.module.state_dict())
            shared = _shared(block, job.model.every_tower)
            with (
                masked_parameters(job.model.module, masked, job.masks),
                _gradients(block.module, shared) as values,
            ):
                trained = sum(value.numel() for value in values)
                self._minimise(values, block, index, streams, targets)
            after = _error(block, index, streams, targets)
            if not after < before:  # the steps were too large for this block: what pruning left is better
                block.module.load_state_dict(saved)
                after = before
        pair.pruned.leave(index)
        log.info("%-10s %-40s error %.4f -> %.4f", pair.pruned.tower.name, block.name, before, after)
        return {"step": float(step), "error_before": before, "error": after}, trained

    def _minimise(
        self,
        values: list[nn.Parameter],
        block: Block,
        index: int,
        streams: Sequence[Stream],
        targets: Sequence[Tensor],
    ) -> None:
        """Minimise the distance with Adam, over several epochs of the streams."""
        optimizer = torch.optim.Adam(values, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * len(streams))
        for _ in range(self.epochs):
            for stream, target in zip(streams, targets, strict=True):
                optimizer.zero_grad()
                loss = _distance(block, index, stream, target)
                if not torch.isfinite(loss):
                    raise NumericalError(
                        f"{block.name}: the reconstruction error is {loss.item()}; use a smaller"
                        " finetune.learning_rate"
                    )
                loss.backward()
                optimizer.step()
                schedule.step()


@dataclass
class _Pair:
    """The same samples in the same tower of two models, dense and pruned."""

    dense: Flow
    pruned: Flow

    def targets(self, index: int) -> list[Tensor]:
        """The dense block's outputs for the dense streams, which pass on to the next block."""
        self.dense.enter(index)
        self.dense.leave(index)
        return [stream.hidden for stream in self.dense.streams]


def _same(towers: Sequence[Tower], wanted: Tower) -> Tower:
    return next(tower for tower in towers if tower.path == wanted.path)


def _shared(block: Block, towers: Sequence[Tower]) -> set[nn.Parameter]:
    """The parameters of a block that blocks beside it have too, such as those of Zamba's shared block."""
    inside = set(block.module.modules())
    others = (other.module for tower in towers for other in tower.blocks)
    beside = (one for one in others if one not in inside and block.module not in set(one.modules()))
    return {parameter for one in beside for parameter in one.parameters()} & set(block.module.parameters())


@contextmanager
def _gradients(module: nn.Module, without: set[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Enable gradients of a block's vectors: kept weights, biases and norms, but no position tables."""
    chosen = [
        parameter for parameter in module.parameters() if parameter.ndim <= 1 and parameter not in without
    ]
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield chosen
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)
            parameter.grad = None


def _distance(block: Block, index: int, stream: Stream, target: Tensor) -> Tensor:
    """``||output - target||^2 / ||target||^2`` over the tokens that are not padding."""
    output = stream.call(index).run(block.module, stream.hidden)
    real = next((mask for mask in stream.counted if mask.shape == target.shape[:2]), None)
    if real is not None:
        output, target = output[real], target[real]
    return mse_loss(output, target) / target.square().mean()


@torch.no_grad()
def _error(block: Block, index: int, streams: Sequence[Stream], targets: Sequence[Tensor]) -> float:
    """Mean distance over the streams."""
    distances = [
        _distance(block, index, stream, target) for stream, target in zip(streams, targets, strict=True)
    ]
    return float(torch.stack(distances).mean())
