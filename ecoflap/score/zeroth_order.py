"""Zeroth-order scores: how much the loss changes when a layer is perturbed at random.

This is ECoFLaP's forward-forward estimate. For each layer W, batch b and draw r, with z ~ N(0, I) of W's
shape,

    s(W) = mean over b, r of | L_b(W + eps z) - L_b(W - eps z) | / 2 eps

To first order in eps its expectation is sqrt(2 / pi) times the norm of the gradient of L_b. The perturbation
is added to the layer's output (eps x z^T), so the weights are never written, and a pass computes only the
blocks from the perturbed one on.

``probe=block`` is another estimator, for large models: it perturbs all layers of a block at once, so that a
block costs one probe instead of one per layer. Its expectation is sqrt(2 / pi) times the norm of the block's
whole gradient, not the sum of its layers' norms. The block's score is divided among its layers by size.

``probe=derivative`` is the limit of small eps, | ``<dL_b / dW, z>`` | for the same z, of all layers from one
backward pass: the same scores up to the error of the difference quotient, for about the cost of
``score=first_order``.

A perturbation of 1e-3 is lost in the rounding of half precision, so half-precision weights are converted to
fp32 for the probes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.loss_batches import Kind, loss_batches, sample_kind, widened
from ecoflap.blocks.repeatable import repeatable_modules
from ecoflap.blocks.suffix import SuffixRunner
from ecoflap.console.progress import track
from ecoflap.data.batch import Batch, samples_in
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import share
from ecoflap.errors import NumericalError, UserError, require_choices, require_positive
from ecoflap.models.core.forward_modes import in_float32, quiet_forward
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower
from ecoflap.score.derivative import directional_derivatives
from ecoflap.score.options import ZerothOrderOptions
from ecoflap.score.pass_size import PassSize
from ecoflap.score.probing import Noise, Probe, probing
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Average, Scores, collect, combine, zero_independent
from ecoflap.score.stacking import can_stack

log = logging.getLogger(__name__)

LARGE_STEP = 30  # times eps: the effect of such a probe is well above the rounding of a loss


class Passes(NamedTuple):
    """How to run the probes of a tower.

    Attributes:
        replay: replay the stored outputs of all blocks before the probed one, instead of computing them.
        stack: let several probes share a pass.
    """

    replay: bool
    stack: bool


class Estimate(NamedTuple):
    """The score of one layer from one draw on one batch.

    Attributes:
        layer: the layer.
        batch: the index of the batch.
        draw: the number of the draw.
        value: the score.
    """

    layer: Layer
    batch: int
    draw: int
    value: float


@dataclass(frozen=True)
class ZerothOrder(ZerothOrderOptions, Scorer):
    """Score every layer by random probes."""

    def __post_init__(self) -> None:
        require_positive("score", self, "samples", "batch_size", "noises", "samples_per_pass")
        if not 0 < self.eps < math.inf:
            raise UserError(f"score.eps={self.eps} must be more than 0 and finite, such as 0.001")
        require_choices("score", self)

    @property
    @override
    def footprint(self) -> Footprint:
        """The probes that share a pass and one layer's noise, or a backward pass for the derivative."""
        if self.probe == "derivative":
            return Footprint("backward", layers=3, float32=True)
        return Footprint("forward", samples_per_pass=self.samples_per_pass, layers=1, float32=True)

    @override
    def identity(self) -> dict[str, Any]:
        paper = {
            "name": self.name,
            "version": 2,
            "samples": self.samples,
            "batch_size": self.batch_size,
            "noises": self.noises,
            "eps": self.eps,
        }
        if self.probe == "derivative":
            del paper["eps"]
        return paper if self.probe == "layer" else {**paper, "probe": self.probe}

    @override
    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        """Score the layers; refuse a loss that depends on none of them.

        Refuse also a model that uses a layer's weight without calling its module, so that perturbing an
        output does not amount to perturbing the weight, and a loss that differs from pass to pass.
        """
        averages = {layer.name: Average() for layer in model.layers}
        estimate = self._differentiate if self.probe == "derivative" else self._probe
        with quiet_forward(model.module), in_float32(model.module):
            samples = calibration.take(self.samples)
            batches = list(map(widened, loss_batches(model, samples, self.batch_size)))
            for layer, index, draw, value in estimate(model, batches, seed):
                where = f"{layer.name} (batch {index}, draw {draw})"
                averages[layer.name].add(value, samples_in(batches[index]), where, index)
        combine(averages)
        zero_independent(averages)
        details = {**self.identity(), "samples": len(samples), "batches": len(batches), "seed": seed}
        return collect(self.name, averages, details)

    def _differentiate(self, model: PrunableModel, batches: Sequence[Batch], seed: int) -> Iterator[Estimate]:
        """Estimates from one backward pass per batch."""
        own = share(list(enumerate(batches)))
        for index, batch in track(own, "score", total=len(own)):
            noise = ("zeroth_order", seed, index)
            found = directional_derivatives(model, batch, self.noises, noise)
            for layer in model.layers:  # the derivative of an expert that the batch doesn't reach is zero
                for draw, value in enumerate(found.get(layer, [0.0] * self.noises)):
                    yield Estimate(layer, index, draw, value)

    def _probe(self, model: PrunableModel, batches: Sequence[Batch], seed: int) -> Iterator[Estimate]:
        """Estimates from forward passes."""
        require_calls(model, batches)
        work = [(tower, block) for tower in model.towers for block in tower.blocks if block.layers]
        passes: dict[tuple[str, Kind], Passes] = {}
        sizes: dict[tuple[str, int], PassSize] = {}
        own = share(list(enumerate(batches)))
        tasks = self._tasks(model, own, work)
        for index, tower, block, runner in track(tasks, "score", total=len(own) * len(work)):
            if not runner.reaches(block.module):  # the batch's loss doesn't depend on it: texts, no pictures
                for layer, draw in product(block.layers, range(self.noises)):
                    yield Estimate(layer, index, draw, 0.0)
                continue
            noise = ("zeroth_order", seed, index)
            # A model may run its blocks otherwise for texts alone, or for two images per sample.
            kind = tower.name, sample_kind({name: tensor[0] for name, tensor in runner.batch.items()})
            if kind not in passes:
                passes[kind] = self._passes(tower, runner, noise)
            size = sizes.setdefault(
                (tower.name, runner.samples),
                PassSize(self.samples_per_pass // (2 * runner.samples), model.device),
            )
            for layers, draw, value in self._probe_block(block, runner, passes[kind], noise, size):
                total = sum(layer.size for layer in layers)
                for layer in layers:
                    yield Estimate(layer, index, draw, layer.size / total * value)

    def _tasks(
        self,
        model: PrunableModel,
        numbered: Sequence[tuple[int, Batch]],
        work: Sequence[tuple[Tower, Block]],
    ) -> Iterator[tuple[int, Tower, Block, SuffixRunner]]:
        """Every pair of a batch and a block; a batch's stored outputs are freed before the next one runs."""
        around = repeatable_modules(model, numbered[0][1]) if numbered else []
        for index, batch in numbered:
            runner = SuffixRunner(model, batch, around)
            if not torch.isfinite(runner.losses).all():
                raise NumericalError(
                    f"the loss of calibration batch {index} is {runner.losses.tolist()}; the model or the"
                    " data are damaged, or the dtype overflows"
                )
            for tower, block in work:
                yield index, tower, block, runner

    def _passes(self, tower: Tower, runner: SuffixRunner, noise: Noise) -> Passes:
        """Find out how to run the probes of a tower, by running each block without one.

        Raises:
            UserError: if the loss differs from pass to pass.
        """
        blocks = [block for block in tower.blocks if block.layers]
        replay = runner.can_replay(blocks[-1:], 1)
        stack = self._stacks(tower, runner, replay, noise)
        if replay and not runner.can_replay(blocks, 2 if stack else 1):
            replay = False
            stack = self._stacks(tower, runner, replay, noise)
        if not replay:
            runner.require_repeatable()
            reason = "on stored inputs its blocks don't give the same loss"
            log.info("score: the whole model is run for each probe of %s; %s", tower.name, reason)
        if not stack:
            reason = "its layers don't read the samples one after the other"
            log.info("score: %s is probed with one probe per pass; %s", tower.name, reason)
        return Passes(replay, stack)

    def _stacks(self, tower: Tower, runner: SuffixRunner, replay: bool, noise: Noise) -> bool:
        """Whether probes of a tower can share a pass."""

        def losses(probes: Sequence[Probe], block: Block, stack: bool) -> Tensor:
            return self._losses(probes, block, runner, Passes(replay, stack), noise, LARGE_STEP * self.eps)

        return can_stack(tower, runner.losses, losses)

    def _losses(
        self,
        probes: Sequence[Probe],
        block: Block,
        runner: SuffixRunner,
        passes: Passes,
        noise: Noise,
        eps: float,
    ) -> Tensor:
        """The losses with probes in a block, [probes, batch], from one pass or one pass each."""
        parts = [list(probes)] if passes.stack else [[probe] for probe in probes]
        run = partial(runner.losses_from, block.module) if passes.replay else runner.losses_of_all
        losses = []
        for part in parts:
            with probing(part, eps, noise):
                losses.append(run(len(part)))
        return torch.cat(losses)

    def _probe_block(
        self, block: Block, runner: SuffixRunner, passes: Passes, noise: Noise, size: PassSize
    ) -> Iterator[tuple[tuple[Layer, ...], int, float]]:
        """Run all probes of a block on one batch, as many per pass as fit.

        Yields:
            The layers that are perturbed together, the number of the draw, and the estimate.
        """
        groups = [block.layers] if self.probe == "block" else [(layer,) for layer in block.layers]
        pairs = [(layers, draw) for layers in groups for draw in range(self.noises)]

        def losses_of(some: Sequence[tuple[tuple[Layer, ...], int]]) -> Tensor:
            probes = [Probe(*pair, sign) for pair in some for sign in (1.0, -1.0)]
            return self._losses(probes, block, runner, passes, noise, self.eps)

        for some, losses in size.passes(pairs, losses_of):
            # [pairs, 2]: with +eps and -eps, on the CPU because some accelerators lack fp64
            means = losses.cpu().double().mean(dim=1).view(-1, 2).tolist()
            for (layers, draw), (plus, minus) in zip(some, means, strict=True):
                yield layers, draw, abs(plus - minus) / (2 * self.eps)
