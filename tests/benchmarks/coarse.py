"""Rows of the coarse stage: scores against two full forward passes per layer, batch and draw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ecoflap.calibrate.easy_vqa import EasyVqa
from ecoflap.calibrate.padding import loss_batches
from ecoflap.calibrate.samples import CalibrationSet
from ecoflap.models.loading import Selection
from ecoflap.models.prunable import PrunableModel, quiet_forward
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from tests.benchmarks import plain
from tests.benchmarks.measure import Row, clock, in_child, interleaved, medians
from tests.benchmarks.models import device, only_blocks, smollm2, tokens
from tests.cli.conftest import composed

VOCABULARY = 49152
SCORED = [4, 14, 24]  # of SmolLM2's 30 blocks: their mean distance from the end is the mean of all


def largest_difference(ours: dict[str, float], other: dict[str, float]) -> float:
    """Relative to the largest score: a score near zero is the rounding of a loss."""
    return max(abs(ours[name] - value) for name, value in other.items()) / max(other.values())


def by_two_passes(model: PrunableModel, calibration: CalibrationSet, draws: int, batch_size: int) -> dict[str, float]:
    """The published scheme, on the batches that ours is computed on."""
    batches = loss_batches(model, calibration, batch_size)
    with quiet_forward(model.module):
        return plain.zeroth_order(model, batches, model.layers, plain.same_noise(0, draws), draws, 1e-3)


def compare(name: str, model: PrunableModel, calibration: CalibrationSet, draws: int, runs: int, target: float, block_probe: bool) -> list[Row]:
    """Our estimate against the published scheme on the same draws, and the block probe against it."""
    scorer, results = ZerothOrder(samples=len(calibration), noises=draws), dict[str, dict[str, float]]()
    probe = ZerothOrder(samples=len(calibration), noises=draws, probe="block")
    sides = {
        "plain": lambda: results.update(plain=by_two_passes(model, calibration, draws, 8)),
        "ours": lambda: results.update(ours=scorer(model, calibration, 0).importance),
    }
    if block_probe:
        sides["block"] = lambda: results.update(block=probe(model, calibration, 0).importance)
    seconds = medians(interleaved(sides, runs))
    against = "two full passes per layer, batch and draw"
    agreement = f"scores to {largest_difference(results['ours'], results['plain']):.1e}"
    ratio = seconds["plain"] / seconds["ours"]
    made = [Row(f"zeroth order, {name}", against, "s", seconds["plain"], seconds["ours"], ratio, (">=", target), agreement)]
    if block_probe:
        ratio = seconds["plain"] / seconds["block"]
        made.append(
            Row(f"block probe, {name}", against, "s", seconds["plain"], seconds["block"], ratio, (">=", 10.0), "another estimator, by definition")
        )
    return made


def blip2_mini(runs: int, draws: int = 16, samples: int = 8) -> list[Row]:
    from ecoflap.config import build

    model: PrunableModel = build("model", composed(["model=blip2_mini"]).model).load(device(), Selection())
    calibration = EasyVqa(samples=samples).load(model, 0)
    return compare(f"blip2_mini, {draws} draws", model, calibration, draws, runs, 10.0, block_probe=False)


def smollm2_zeroth_order() -> list[Row]:
    """One run: the published side takes minutes. The three blocks stand for thirty, whose layers cost the same on the published side."""
    return compare("SmolLM2, 8 x 128", only_blocks(smollm2(), SCORED), tokens(8, 128, VOCABULARY), 1, 1, 2.0, block_probe=True)


def smollm2_first_order() -> Row:
    """Against the published zeroth-order scheme on all layers, of which one forward pass is measured and multiplied."""
    model, calibration = smollm2(), tokens(32, 128, VOCABULARY)
    batches = calibration.batches(8)
    with torch.no_grad():
        model.loss(batches[0])
        forward = medians(interleaved({"forward": lambda: model.loss(batches[0])}, 3))["forward"]
    started = clock()
    FirstOrder("gradient_norm", samples=32)(model, calibration, 0)
    ours, published = clock() - started, forward * len(batches) * 2 * len(model.layers)
    against = "zeroth order, two full passes per layer and batch (one pass measured)"
    details = {"forward passes that ours costs": ours / forward / len(batches)}
    return Row("first order, SmolLM2, 32 x 128", against, "s", published, ours, published / ours, (">=", 100.0), "another estimator", details)


def first_order_memory() -> Row:
    """Peak memory of processes that do one forward pass without gradients, or score."""
    forward, ours = in_child("tests.benchmarks.coarse:forward_pass"), in_child("tests.benchmarks.coarse:first_order_pass")
    ratio = ours["peak_bytes"] / forward["peak_bytes"]
    megabytes = [result["peak_bytes"] / 2**20 for result in (forward, ours)]
    return Row("first order's memory, SmolLM2, 8 x 128", "a forward pass", "MiB", *megabytes, ratio, ("<=", 1.3), "-")


def forward_pass() -> dict[str, Any]:
    with torch.no_grad():
        smollm2().loss(tokens(8, 128, VOCABULARY).batches(8)[0])
    return {}


def first_order_pass() -> dict[str, Any]:
    FirstOrder(samples=8)(smollm2(), tokens(8, 128, VOCABULARY), 0)
    return {}


def rows(runs: int) -> Iterator[Row]:
    yield from blip2_mini(runs)
    yield from smollm2_zeroth_order()
    yield smollm2_first_order()
    yield first_order_memory()
