"""Zeroth-order scores: how far the loss moves when a layer is nudged at random (ECoFLaP, equation of the forward-forward estimate).

For each layer W, batch b and draw r, with z ~ N(0, I) of W's shape,

    s(W) = mean over b, r of | L_b(W + eps z) - L_b(W - eps z) | / 2 eps

To first order in eps its expectation is sqrt(2 / pi) times the norm of the gradient of L_b. The nudge is added to the layer's output
(eps x z^T), so the weights themselves are never touched, and only the blocks from the nudged one on are computed.

``probe=block`` is another estimator, for large models: one z for all layers of a block at once, so that a block costs one probe instead of one per
layer. Its expectation is sqrt(2 / pi) times the norm of the block's whole gradient, not the sum of its layers' norms. The layers of a block get
shares of it by their size, so their sum is the block's score and they are told apart by nothing else.

A nudge of 1e-3 drowns in the rounding of half precision, so half-precision weights are held in fp32 while they are probed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ecoflap.calibrate.padding import loss_batches
from ecoflap.calibrate.samples import CalibrationSet
from ecoflap.calibrate.suffix import SuffixRunner
from ecoflap.console import track
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.models.layers import Layer
from ecoflap.models.prunable import PrunableModel, in_float32, quiet_forward
from ecoflap.models.towers import Block, Tower
from ecoflap.ops import gaussian
from ecoflap.score.pass_size import PassSize
from ecoflap.score.scores import Average, Scores, collect

log = logging.getLogger(__name__)

Noise = tuple[str | int, ...]
PROBES = ("layer", "block")


class Probe(NamedTuple):
    """One nudge of one layer, or of all layers of a block: +eps z or -eps z of one draw of z."""

    layers: tuple[Layer, ...]
    draw: int
    sign: float


@dataclass(frozen=True)
class ZerothOrder:
    """Score every layer by random probes.

    Attributes:
        samples: how many samples of the calibration set are used, from the first.
        batch_size: samples whose mean loss one probe moves; part of the estimate, as in the paper. See ``loss_batches`` for texts of other lengths.
        noises: independent draws of z per layer and batch.
        eps: size of a probe.
        samples_per_pass: most samples that share one forward pass, probes included; fewer where memory does not hold them. Changes nothing else.
        probe: layer (the paper's) or block (cheaper, another estimator).
        name: for people and result files.
    """

    samples: int = 32
    batch_size: int = 8
    noises: int = 1
    eps: float = 1e-3
    samples_per_pass: int = 64
    probe: str = "layer"
    name: str = "zeroth_order"

    def __post_init__(self) -> None:
        require_positive("score", self, "samples", "batch_size", "noises", "samples_per_pass")
        if not self.eps > 0:
            raise UserError(f"score.eps={self.eps} must be more than 0")
        if self.probe not in PROBES:
            raise UserError(f"score.probe={self.probe} is not known; choose {' or '.join(PROBES)}")

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on."""
        paper = {"name": self.name, "version": 2, "samples": self.samples, "batch_size": self.batch_size, "noises": self.noises, "eps": self.eps}
        return paper if self.probe == "layer" else {**paper, "probe": self.probe}

    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        """Measure every layer of the model's towers.

        Raises:
            NumericalError: a loss or a score is not finite.
        """
        averages = {layer.name: Average() for layer in model.layers}
        work = [(tower, block) for tower in model.towers for block in tower.blocks if block.layers]
        stackable: dict[str, bool] = {}
        sizes: dict[tuple[str, int], PassSize] = {}
        with quiet_forward(model.module), in_float32(model.module):
            batches = loss_batches(model, calibration.take(self.samples), self.batch_size)
            for index, tower, block, runner in track(self._tasks(model, batches, work), "score", total=len(batches) * len(work)):
                noise = ("zeroth_order", seed, index)
                if tower.name not in stackable:
                    stackable[tower.name] = self._stacks(tower, block, runner, noise)
                size = sizes.setdefault((tower.name, runner.samples), PassSize(self.samples_per_pass // (2 * runner.samples), model.device))
                for layers, draw, value in self._probe_block(block, runner, stackable[tower.name], noise, size):
                    for layer in layers:
                        share = layer.size / sum(each.size for each in layers)
                        averages[layer.name].add(share * value, runner.samples, f"{layer.name} (batch {index}, draw {draw})")
        return collect(
            self.name, averages, {**self.identity(), "samples": min(self.samples, len(calibration)), "batches": len(batches), "seed": seed}
        )

    def _tasks(
        self, model: PrunableModel, batches: Sequence[dict[str, Tensor]], work: Sequence[tuple[Tower, Block]]
    ) -> Iterator[tuple[int, Tower, Block, SuffixRunner]]:
        """Every (batch, block) pair; the stored outputs of one batch are let go before the next is run."""
        for index, batch in enumerate(batches):
            runner = SuffixRunner(model, batch)
            if not torch.isfinite(runner.losses).all():
                raise NumericalError(
                    f"the loss of calibration batch {index} is {runner.losses.tolist()}; the model or the data are damaged, or the dtype overflows"
                )
            for tower, block in work:
                yield index, tower, block, runner

    def _stacks(self, tower: Tower, block: Block, runner: SuffixRunner, noise: Noise) -> bool:
        """Whether probes can share a pass: two in one pass move the losses as they do one by one.

        Not so where samples are not the first dimension inside a tower, or are interleaved there (two images per sample, one after the other).
        """
        probes = [Probe(block.layers[-1:], 0, sign) for sign in (1.0, -1.0)]
        together = self._losses(probes, block, runner, True, noise)
        apart = self._losses(probes, block, runner, False, noise)
        effect = (apart - runner.losses).abs().max()
        same = bool((together - apart).abs().max() <= 0.05 * effect + 1e-5 * apart.abs().max())
        if not same:
            log.info("score: %s is probed with one probe per pass; it does not keep samples apart along the first dimension", tower.name)
        return same

    def _losses(self, probes: Sequence[Probe], block: Block, runner: SuffixRunner, stack: bool, noise: Noise) -> Tensor:
        """Losses [probes, batch], in one pass or in one pass each."""
        parts = [list(probes)] if stack else [[probe] for probe in probes]
        losses = []
        for part in parts:
            with probing(part, self.eps, noise):
                losses.append(runner.losses_from(block.module, len(part)))
        return torch.cat(losses)

    def _probe_block(
        self, block: Block, runner: SuffixRunner, stack: bool, noise: Noise, size: PassSize
    ) -> Iterator[tuple[tuple[Layer, ...], int, float]]:
        """All probes of a block on one batch, as many in one pass as fit."""
        groups = [block.layers] if self.probe == "block" else [(layer,) for layer in block.layers]
        pairs = [(layers, draw) for layers in groups for draw in range(self.noises)]
        while pairs:

            def together(count: int, pairs: Sequence[tuple[tuple[Layer, ...], int]] = tuple(pairs)) -> Tensor:
                return self._losses([Probe(*pair, sign) for pair in pairs[:count] for sign in (1.0, -1.0)], block, runner, stack, noise)

            losses, done = size.run(len(pairs), together)
            means = losses.double().mean(dim=1)
            for (layers, draw), plus, minus in zip(pairs[:done], means[0::2].tolist(), means[1::2].tolist(), strict=True):
                yield layers, draw, abs(plus - minus) / (2 * self.eps)
            pairs = pairs[done:]


@contextmanager
def probing(probes: Sequence[Probe], eps: float, noise: Noise) -> Iterator[None]:
    """Add probe k to the outputs of its layers for copy k of the batch.

    Args:
        probes: one per copy.
        eps: size of a probe.
        noise: what the draws depend on beside layer and draw.
    """
    by_layer: dict[Layer, list[tuple[int, Probe]]] = {}
    for copy, probe in enumerate(probes):
        for layer in probe.layers:
            by_layer.setdefault(layer, []).append((copy, probe))
    handles = [layer.module.register_forward_hook(_nudge(layer, places, len(probes), eps, noise)) for layer, places in by_layer.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nudge(layer: Layer, places: Sequence[tuple[int, Probe]], copies: int, eps: float, noise: Noise) -> Any:
    draws = {probe.draw: gaussian(layer.shape, *noise, layer.name, probe.draw, device=layer.weight.device) for _, probe in places}

    def hook(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        inputs, result = arguments[0], output.float().clone()
        samples = len(inputs) // copies  # or samples x tokens: some blocks flatten the two before a layer
        for copy, probe in places:
            rows = slice(copy * samples, (copy + 1) * samples)
            result[rows] += probe.sign * eps * (inputs[rows].float() @ draws[probe.draw].t())
        return result.to(output.dtype)

    return hook
