"""Zeroth-order scores: how far the loss moves when a layer is nudged at random (ECoFLaP, equation of the
forward-forward estimate).

For each layer W, batch b and draw r, with z ~ N(0, I) of W's shape,

    s(W) = mean over b, r of | L_b(W + eps z) - L_b(W - eps z) | / 2 eps

To first order in eps its expectation is sqrt(2 / pi) times the norm of the gradient of L_b. The nudge is
added to the layer's output (eps x z^T), so the weights themselves are never touched, and only the blocks from
the nudged one on are computed.

``probe=block`` is another estimator, for large models: one z for all layers of a block at once, so that a
block costs one probe instead of one per layer. Its expectation is sqrt(2 / pi) times the norm of the block's
whole gradient, not the sum of its layers' norms. The layers of a block get shares of it by their size, so
their sum is the block's score and they are told apart by nothing else.

``probe=derivative`` is the limit of small eps, | ``<dL_b / dW, z>`` | for the same z, of all layers from one
backward pass: the same scores up to the error of the difference quotient, for about the cost of
``score=first_order``.

A nudge of 1e-3 drowns in the rounding of half precision, so half-precision weights are held in fp32 while
they are probed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.loss_batches import Kind, kind_of, loss_batches
from ecoflap.blocks.suffix import SuffixRunner, repeatable_modules
from ecoflap.console.progress import track
from ecoflap.data.batch import Batch, samples_in
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError, require_choices, require_positive
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel, in_float32, quiet_forward
from ecoflap.models.core.towers import Block, Tower
from ecoflap.score.derivative import slopes
from ecoflap.score.options import ZerothOrderOptions
from ecoflap.score.pass_size import PassSize
from ecoflap.score.probing import Noise, Probe, probing
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Average, Scores, collect, count_untouched
from ecoflap.score.stacking import probes_stack

log = logging.getLogger(__name__)

LARGE_STEP = 30  # times eps: what a probe does then stands well above the rounding of a loss


class Passes(NamedTuple):
    """How the probes of a tower are run.

    Attributes:
        replay: what comes before the probed block is replayed instead of computed.
        stack: several probes share a pass.
    """

    replay: bool
    stack: bool


class Estimate(NamedTuple):
    """One draw's score of one layer on one batch."""

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
    def footprint(self) -> Footprint:
        """The probes that share a pass and one layer's noise, or a backward pass for the derivative."""
        if self.probe == "derivative":
            return Footprint("backward", layers=3, float32=True)
        return Footprint("forward", samples_per_pass=self.samples_per_pass, layers=1, float32=True)

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on."""
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

    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        """Measure every layer of the model's towers.

        Raises:
            NumericalError: a loss or a score is not finite.
            UserError: the loss doesn't depend on some block, or on none of the layers; or a layer's weight is
                used without calling its module, where no nudge of an output stands for a move of the weight.
        """
        averages = {layer.name: Average() for layer in model.layers}
        with quiet_forward(model.module), in_float32(model.module):
            batches = loss_batches(model, calibration.take(self.samples), self.batch_size)
            estimates = (
                self._differentiate(model, batches, seed)
                if self.probe == "derivative"
                else self._probe(model, batches, seed)
            )
            for layer, index, draw, value in estimates:
                averages[layer.name].add(
                    value, samples_in(batches[index]), f"{layer.name} (batch {index}, draw {draw})"
                )
        count_untouched(averages)
        return collect(
            self.name,
            averages,
            {
                **self.identity(),
                "samples": min(self.samples, len(calibration)),
                "batches": len(batches),
                "seed": seed,
            },
        )

    def _differentiate(self, model: PrunableModel, batches: Sequence[Batch], seed: int) -> Iterator[Estimate]:
        """Estimates from one backward pass per batch."""
        for index, batch in enumerate(track(batches, "score", total=len(batches))):
            for layer, values in slopes(model, batch, self.noises, ("zeroth_order", seed, index)).items():
                for draw, value in enumerate(values):
                    yield Estimate(layer, index, draw, value)

    def _probe(self, model: PrunableModel, batches: Sequence[Batch], seed: int) -> Iterator[Estimate]:
        """Estimates from forward passes."""
        require_calls(model, batches)
        work = [(tower, block) for tower in model.towers for block in tower.blocks if block.layers]
        passes: dict[tuple[str, Kind], Passes] = {}
        sizes: dict[tuple[str, int], PassSize] = {}
        for index, tower, block, runner in track(
            self._tasks(model, batches, work), "score", total=len(batches) * len(work)
        ):
            noise = ("zeroth_order", seed, index)
            # Pictures may run blocks as texts alone don't, and two pictures may stand where one does.
            kind = tower.name, kind_of({name: tensor[0] for name, tensor in runner.batch.items()})
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
        self, model: PrunableModel, batches: Sequence[Batch], work: Sequence[tuple[Tower, Block]]
    ) -> Iterator[tuple[int, Tower, Block, SuffixRunner]]:
        """Every (batch, block) pair; the stored outputs of one batch are let go before the next is run."""
        around = repeatable_modules(model, batches[0])
        for index, batch in enumerate(batches):
            runner = SuffixRunner(model, batch, around)
            if not torch.isfinite(runner.losses).all():
                raise NumericalError(
                    f"the loss of calibration batch {index} is {runner.losses.tolist()}; the model or the"
                    " data are damaged, or the dtype overflows"
                )
            for tower, block in work:
                yield index, tower, block, runner

    def _passes(self, tower: Tower, runner: SuffixRunner, noise: Noise) -> Passes:
        """Find out what holds for a tower: each block is run without a probe, as it will be with one."""
        blocks = [block for block in tower.blocks if block.layers]
        replay = runner.can_replay(blocks[-1:], 1)
        stack = self._stacks(tower, runner, replay, noise)
        if replay and not runner.can_replay(blocks, 2 if stack else 1):
            replay = False
            stack = self._stacks(tower, runner, replay, noise)
        if not replay:
            reason = "on stored inputs its blocks don't give the same loss"
            log.info("score: the whole model is run for each probe of %s; %s", tower.name, reason)
        if not stack:
            log.info(
                "score: %s is probed with one probe per pass; it does not keep samples apart along the first"
                " dimension",
                tower.name,
            )
        return Passes(replay, stack)

    def _stacks(self, tower: Tower, runner: SuffixRunner, replay: bool, noise: Noise) -> bool:
        """Whether probes of a tower can share a pass."""

        def losses(probes: Sequence[Probe], block: Block, stack: bool) -> Tensor:
            return self._losses(probes, block, runner, Passes(replay, stack), noise, LARGE_STEP * self.eps)

        return probes_stack(tower, runner.losses, losses)

    def _losses(
        self,
        probes: Sequence[Probe],
        block: Block,
        runner: SuffixRunner,
        passes: Passes,
        noise: Noise,
        eps: float,
    ) -> Tensor:
        """Losses [probes, batch], in one pass or in one pass each."""
        parts = [list(probes)] if passes.stack else [[probe] for probe in probes]
        losses = []
        for part in parts:
            with probing(part, eps, noise):
                count = len(part)
                losses.append(
                    runner.losses_from(block.module, count) if passes.replay else runner.losses_of_all(count)
                )
        return torch.cat(losses)

    def _probe_block(
        self, block: Block, runner: SuffixRunner, passes: Passes, noise: Noise, size: PassSize
    ) -> Iterator[tuple[tuple[Layer, ...], int, float]]:
        """All probes of a block on one batch, as many in one pass as fit."""
        groups = [block.layers] if self.probe == "block" else [(layer,) for layer in block.layers]
        pairs = [(layers, draw) for layers in groups for draw in range(self.noises)]
        while pairs:

            def together(count: int, pairs: Sequence[tuple[tuple[Layer, ...], int]] = tuple(pairs)) -> Tensor:
                return self._losses(
                    [Probe(*pair, sign) for pair in pairs[:count] for sign in (1.0, -1.0)],
                    block,
                    runner,
                    passes,
                    noise,
                    self.eps,
                )

            losses, done = size.run(len(pairs), together)
            means = losses.cpu().double().mean(dim=1)  # not every accelerator has fp64
            for (layers, draw), plus, minus in zip(
                pairs[:done], means[0::2].tolist(), means[1::2].tolist(), strict=True
            ):
                yield layers, draw, abs(plus - minus) / (2 * self.eps)
            pairs = pairs[done:]
