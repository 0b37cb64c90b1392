"""Rows of the coarse stage: scores against two full forward passes per layer, batch and draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import plain
from benchmarks.measure import Row, clock, in_child, interleaved, medians
from benchmarks.models import device, only_blocks, smollm2, tokens
from ecoflap.allocate.in_context import InContext
from ecoflap.allocate.protocol import Context
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.easy_vqa.calibration import EasyVqa
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.prune.wanda import Wanda
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from tests.cli.conftest import composed

VOCABULARY = 49152
SCORED = [2, 8, 14, 21, 27]  # of SmolLM2's 30 blocks: their mean distance from the end is about that of all


def largest_difference(ours: dict[str, float], other: dict[str, float]) -> float:
    """Relative to the largest score: a score near zero is the rounding of a loss."""
    return max(abs(ours[name] - value) for name, value in other.items()) / max(other.values())


def by_two_passes(
    model: PrunableModel, calibration: CalibrationSet, draws: int, batch_size: int
) -> dict[str, float]:
    """The published scheme, on the batches that ours is computed on."""
    batches = loss_batches(model, calibration, batch_size)
    with quiet_forward(model.module):
        return plain.zeroth_order(model, batches, model.layers, plain.same_noise(0, draws), draws, 1e-3)


AGAINST = "two full passes per layer, batch and draw"


def blip2_mini(runs: int, draws: int = 16, samples: int = 32) -> Row:
    """Our estimate against the published scheme on the same draws."""
    from ecoflap.run.instantiate import build

    model: PrunableModel = build("model", composed(["model=blip2_mini"]).model).load(device(), Selection())
    calibration = EasyVqa(samples=samples).load(model, 0)
    scorer, results = ZerothOrder(samples=samples, noises=draws), dict[str, dict[str, float]]()
    sides = {
        "plain": lambda: results.update(plain=by_two_passes(model, calibration, draws, 8)),
        "ours": lambda: results.update(ours=scorer(model, calibration, 0).importance),
    }
    seconds = medians(interleaved(sides, runs))
    agreement = f"scores to {largest_difference(results['ours'], results['plain']):.1e}"
    ratio = seconds["plain"] / seconds["ours"]
    return Row(
        f"zeroth order, blip2_mini, {samples} samples, {draws} draws",
        AGAINST,
        "s",
        seconds["plain"],
        seconds["ours"],
        ratio,
        (">=", 10.0),
        agreement,
    )


def zeroth_order(
    name: str, model: PrunableModel, calibration: CalibrationSet, scored: list[int]
) -> Iterator[Row]:
    """All three probes, once. The published scheme, whose layers all cost the same, is run on some blocks and
    multiplied; so is ours by layers.
    """
    started = clock()
    expected = by_two_passes(only_blocks(model, scored), calibration, 1, 8)
    published = (clock() - started) * len(model.blocks) / len(scored)
    against = f"{AGAINST} (on {len(scored)} of {len(model.blocks)} blocks)"
    for probe, what, target in (
        ("derivative", "by derivative", 2.0),
        ("block", "a probe per block", 10.0),
        ("layer", "by probes", 2.0),
    ):
        part = only_blocks(model, scored) if probe == "layer" else model
        started = clock()
        scores = ZerothOrder(samples=len(calibration), probe=probe)(part, calibration, 0).importance
        ours = (clock() - started) * len(model.layers) / len(part.layers)
        agreement = (
            "another estimator, by definition"
            if probe == "block"
            else f"scores to {largest_difference(scores, expected):.1e}"
        )
        yield Row(
            f"zeroth order {what}, {name}",
            against,
            "s",
            published,
            ours,
            published / ours,
            (">=", target),
            agreement,
        )


def smollm2_first_order() -> Row:
    """The gradients of one backward pass."""
    calibration = tokens(32, 128, VOCABULARY)
    scorer = FirstOrder("gradient_norm", samples=32)
    return beside_zeroth_order("first order, SmolLM2, 32 x 128", scorer, calibration, 100.0)


def smollm2_in_context(sparsity: float = 0.6) -> Row:
    """All steps of the search under Wanda."""
    calibration = tokens(64, 128, VOCABULARY)

    def search(model: PrunableModel, calibration: CalibrationSet, seed: int) -> None:
        InContext()(model, None, sparsity, Context(Wanda(), calibration, 8, seed))

    name = f"in-context allocation at {sparsity} under Wanda, SmolLM2, 64 x 128"
    return beside_zeroth_order(name, search, calibration, 20.0)


def beside_zeroth_order(
    name: str,
    method: Callable[[PrunableModel, CalibrationSet, int], Any],
    calibration: CalibrationSet,
    target: float,
) -> Row:
    """Against the published zeroth-order scheme on all layers, of which one forward pass is measured and
    multiplied.
    """
    model, batches = smollm2(), calibration.batches(8)
    with torch.no_grad():
        model.loss(batches[0])
        forward = medians(interleaved({"forward": lambda: model.loss(batches[0])}, 3))["forward"]
    started = clock()
    method(model, calibration, 0)
    ours, published = clock() - started, forward * len(batches) * 2 * len(model.layers)
    against = "zeroth order, two full passes per layer and batch (one pass measured)"
    details = {"forward passes that ours costs": ours / forward / len(batches)}
    ratio = published / ours
    return Row(name, against, "s", published, ours, ratio, (">=", target), "another estimator", details)


def first_order_memory() -> Row:
    """Peak memory of processes that do one forward pass without gradients, or score."""
    forward, ours = in_child("benchmarks.coarse:forward_pass"), in_child("benchmarks.coarse:first_order_pass")
    ratio = ours["peak_bytes"] / forward["peak_bytes"]
    megabytes = [result["peak_bytes"] / 2**20 for result in (forward, ours)]
    return Row(
        "first order's memory, SmolLM2, 8 x 128", "a forward pass", "MiB", *megabytes, ratio, ("<=", 1.3), "-"
    )


def forward_pass() -> dict[str, Any]:
    with torch.no_grad():
        smollm2().loss(tokens(8, 128, VOCABULARY).batches(8)[0])
    return {}


def first_order_pass() -> dict[str, Any]:
    FirstOrder(samples=8)(smollm2(), tokens(8, 128, VOCABULARY), 0)
    return {}


def rows(runs: int) -> Iterator[Row]:
    yield blip2_mini(runs)
    yield from zeroth_order("SmolLM2, 8 x 128", smollm2(), tokens(8, 128, VOCABULARY), SCORED)
    yield smollm2_first_order()
    yield smollm2_in_context()
    yield first_order_memory()
