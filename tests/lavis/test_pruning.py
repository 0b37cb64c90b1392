"""LAVIS' models under the system: masks, weights and scores equal the slow references, in every tower."""

from __future__ import annotations

import pytest
import torch

from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from tests.lavis import tiny
from tests.prune import reference
from tests.prune.test_families import PRUNERS, assert_equals_by_hand
from tests.score.test_zeroth_order import LARGE, two_forward_passes_per_probe

TOWERS = {"blip2": ["vision", "qformer", "encoder", "decoder"], "nlvr": ["vision", "text"]}


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("family", tiny.MODULES)
@pytest.mark.every_run("blip2-*", "nlvr-wanda", "nlvr-sparsegpt", "nlvr-admm_2_4")
def test_equals_pruning_layer_by_layer_with_full_forward_passes(family: str, name: str) -> None:
    calibration = tiny.samples(family, lengths=(7, 9, 7))
    model, other = (tiny.build(family, TOWERS[family]) for _ in range(2))
    assert_equals_by_hand(name, model, other, calibration)


@pytest.mark.parametrize("family", tiny.MODULES)
def test_both_pictures_and_every_layer_are_seen(family: str) -> None:
    """A statistic that missed the second picture would not equal the reference; here the reference itself is
    checked.
    """
    model, calibration = tiny.build(family), tiny.samples(family, lengths=(5,))
    pictures = 2 if family == "nlvr" else 1
    patches = (tiny.IMAGE // tiny.VISION["patch_size"]) ** 2 + 1
    assert reference.inputs_of(model, model.towers[0].layers[0], calibration).shape == (
        pictures * patches,
        16,
    )
    assert all(reference.inputs_of(model, layer, calibration).any() for layer in model.layers)


@pytest.mark.parametrize("family", tiny.MODULES)
@pytest.mark.every_run("blip2")
def test_zeroth_order_equals_really_moving_the_weights(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    before = model.fingerprint()
    with caplog.at_level("INFO"):
        scores = ZerothOrder(**LARGE)(model, calibration, seed=7)
    assert model.fingerprint() == before
    assert "one probe per pass" not in caplog.text  # also where a sample has two pictures
    expected = two_forward_passes_per_probe(model, calibration, ZerothOrder(**LARGE), seed=7)
    assert scores.importance == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("family", tiny.MODULES)
def test_first_order_equals_plain_autograd(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family, lengths=(5, 5))
    scores = FirstOrder("gradient", batch_size=2)(model, calibration, 0)
    gradients = torch.autograd.grad(
        model.loss(calibration.batches(2)[0]).mean(), [layer.weight for layer in model.layers]
    )
    expected = {
        layer.name: float(gradient.abs().sum())
        for layer, gradient in zip(model.layers, gradients, strict=True)
    }
    assert scores.importance == pytest.approx(expected, rel=1e-4)
    assert all(expected.values())
