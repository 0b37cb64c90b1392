"""Zeroth-order scores: how far the loss moves when a layer is nudged at random (ECoFLaP, equation of the forward-forward estimate).

For each layer W, batch b and draw r, with z ~ N(0, I) of W's shape,

    s(W) = mean over b, r of | L_b(W + eps z) - L_b(W - eps z) | / 2 eps

To first order in eps its expectation is sqrt(2 / pi) times the norm of the gradient of L_b. The nudge is added to the layer's output
(eps x z^T), so the weights themselves are never touched, and only the blocks from the nudged one on are computed.

A nudge of 1e-3 drowns in the rounding of half precision, so half-precision weights are held in fp32 while they are probed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.calibrate.samples import CalibrationSet
from ecoflap.calibrate.suffix import SuffixRunner
from ecoflap.console import track
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.layers import Layer
from ecoflap.models.prunable import PrunableModel, in_float32, quiet_forward
from ecoflap.models.towers import Block
from ecoflap.ops import gaussian
from ecoflap.score.scores import Average, Scores, collect


@dataclass(frozen=True)
class ZerothOrder:
    """Score every layer by random probes.

    Attributes:
        samples: how many samples of the calibration set are used, from the first.
        batch_size: samples whose mean loss one probe moves; part of the estimate, as in the paper.
        noises: independent draws of z per layer and batch.
        eps: size of a probe.
        samples_per_pass: samples that share one forward pass, probes included; bounds the memory and changes nothing else.
        name: for people and result files.
    """

    samples: int = 32
    batch_size: int = 8
    noises: int = 1
    eps: float = 1e-3
    samples_per_pass: int = 64
    name: str = "zeroth_order"

    def __post_init__(self) -> None:
        for option in ("samples", "batch_size", "noises", "samples_per_pass", "eps"):
            if not getattr(self, option) > 0:
                raise UserError(f"score.{option}={getattr(self, option)} must be more than 0")

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on."""
        return {"name": self.name, "samples": self.samples, "batch_size": self.batch_size, "noises": self.noises, "eps": self.eps}

    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        """Measure every layer of the model's towers.

        Raises:
            NumericalError: a loss or a score is not finite.
        """
        averages = {layer.name: Average() for layer in model.layers}
        batches = calibration.take(self.samples).batches(self.batch_size)
        blocks = [block for tower in model.towers for block in tower.blocks if block.layers]
        with quiet_forward(model.module), in_float32(model.module):
            for index, block, runner in track(self._tasks(model, batches, blocks), "score", total=len(batches) * len(blocks)):
                for layer, draw, value in self._probe_block(block, runner, index, seed):
                    averages[layer.name].add(value, runner.samples, f"{layer.name} (batch {index}, draw {draw})")
        return collect(self.name, averages, {**self.identity(), "samples": min(self.samples, len(calibration)), "seed": seed})

    def _tasks(
        self, model: PrunableModel, batches: Sequence[dict[str, Tensor]], blocks: Sequence[Block]
    ) -> Iterator[tuple[int, Block, SuffixRunner]]:
        """Every (batch, block) pair; the stored outputs of one batch are let go before the next is run."""
        for index, batch in enumerate(batches):
            runner = SuffixRunner(model, batch)
            if not torch.isfinite(runner.losses).all():
                raise NumericalError(
                    f"the loss of calibration batch {index} is {runner.losses.tolist()}; the model or the data are damaged, or the dtype overflows"
                )
            for block in blocks:
                yield index, block, runner

    def _probe_block(self, block: Block, runner: SuffixRunner, batch_index: int, seed: int) -> Iterator[tuple[Layer, int, float]]:
        """All probes of a block's layers on one batch, as many in one pass as fit."""
        probes = [(layer, draw) for layer in block.layers for draw in range(self.noises)]
        pairs_per_pass = max(1, self.samples_per_pass // (2 * runner.samples))
        for start in range(0, len(probes), pairs_per_pass):
            part = probes[start : start + pairs_per_pass]
            with probing(part, self.eps, ("zeroth_order", seed, batch_index)):
                losses = runner.losses_from(block.module, 2 * len(part)).double().mean(dim=1)
            for (layer, draw), plus, minus in zip(part, losses[0::2].tolist(), losses[1::2].tolist(), strict=True):
                yield layer, draw, abs(plus - minus) / (2 * self.eps)


@contextmanager
def probing(probes: Sequence[tuple[Layer, int]], eps: float, seed: tuple[Any, ...]) -> Iterator[None]:
    """Add probe k to its layer's output for copies 2k (+eps) and 2k + 1 (-eps) of the batch.

    Args:
        probes: (layer, draw) pairs.
        eps: size of a probe.
        seed: what the noise depends on beside layer and draw.
    """
    by_layer: dict[Layer, list[tuple[int, int]]] = {}
    for index, (layer, draw) in enumerate(probes):
        by_layer.setdefault(layer, []).append((index, draw))
    handles = [layer.module.register_forward_hook(_nudge(layer, places, 2 * len(probes), eps, seed)) for layer, places in by_layer.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nudge(layer: Layer, places: Sequence[tuple[int, int]], copies: int, eps: float, seed: tuple[Any, ...]) -> Any:
    noises = [gaussian(layer.shape, *seed, layer.name, draw, device=layer.weight.device) for _, draw in places]

    def hook(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        inputs, result = arguments[0], output.float().clone()
        samples = len(inputs) // copies  # or samples x tokens: some blocks flatten the two before a layer
        for (index, _draw), noise in zip(places, noises, strict=True):
            for copy, sign in ((2 * index, 1.0), (2 * index + 1, -1.0)):
                rows = slice(copy * samples, (copy + 1) * samples)
                result[rows] += sign * eps * (inputs[rows].float() @ noise.t())
        return result.to(output.dtype)

    return hook
