"""The same BLIP-2 in LAVIS and in transformers: the same losses, scores and masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip2 import generation as blip2
from ecoflap.models.families.lavis.keys import to_lavis, to_transformers
from ecoflap.models.loading.loader import prunable
from ecoflap.ops import gaussian
from ecoflap.prune.driver import prune
from ecoflap.score import probing
from ecoflap.score.first_order import MEASURES, FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from tests.lavis import tiny
from tests.prune.test_families import PRUNERS, uneven

if not hasattr(transformers, "Blip2Config"):
    pytest.skip(
        "this release of transformers has no BLIP-2; make test-mixed has one that has",
        allow_module_level=True,
    )

IMAGE_TOKEN = tiny.VOCABULARY - 1


def in_transformers() -> PrunableModel:
    """The weights of ``tiny.build("blip2")`` in transformers' BLIP-2."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    text = transformers.T5Config(**tiny.BLIP2["t5"])
    text.dense_act_fn = "gelu"
    config = transformers.Blip2Config(
        vision_config={**sizes, "image_size": tiny.IMAGE, "patch_size": 14},
        qformer_config={**sizes, "encoder_hidden_size": 16},
        text_config=text.to_dict(),
        num_query_tokens=tiny.QUERIES,
        image_token_index=IMAGE_TOKEN,
    )
    module: Any = transformers.Blip2ForConditionalGeneration(config)
    module.load_state_dict(to_transformers(tiny.module("blip2").state_dict()))
    module.vision_model.post_layernorm.eps = (
        1e-5  # LAVIS' epsilon; transformers uses that of the blocks, 1e-6
    )
    return prunable("blip2", module.eval(), None, blip2.answer_loss, Selection())


def for_transformers(calibration: CalibrationSet) -> CalibrationSet:
    """The same samples with the image tokens that transformers wants in the prompt."""
    converted = []
    for sample in calibration.samples:
        input_ids = torch.cat([torch.full((tiny.QUERIES,), IMAGE_TOKEN), sample["input_ids"]])
        converted.append({**sample, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
    return CalibrationSet("tiny", tuple(converted))


def name_in_transformers(name: str) -> str:
    return next(iter(to_transformers({name: torch.zeros(1)})))


@pytest.fixture
def calibrations() -> tuple[CalibrationSet, CalibrationSet]:
    """Without the image token among the words."""
    calibration = tiny.samples("blip2", lengths=(7, 9, 7))
    for sample in calibration.samples:
        sample["input_ids"].clamp_(max=IMAGE_TOKEN - 1)
    return calibration, for_transformers(calibration)


def test_state_dicts_hold_the_same() -> None:
    there, here = in_transformers().module.state_dict(), tiny.module("blip2").state_dict()
    del here["Qformer.bert.embeddings.position_ids"]
    back = to_lavis(there)
    assert back.keys() == here.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in here.items())
    assert [name_in_transformers(layer.name) for layer in tiny.build("blip2").layers] == [
        layer.name for layer in in_transformers().layers
    ]


@torch.no_grad()
def test_losses(calibrations: tuple[CalibrationSet, CalibrationSet]) -> None:
    ours, theirs = calibrations
    for one, other in zip(ours.batches(2), theirs.batches(2), strict=True):
        torch.testing.assert_close(
            tiny.build("blip2").loss(one), in_transformers().loss(other), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("measure", MEASURES)
def test_first_order_scores(measure: str, calibrations: tuple[CalibrationSet, CalibrationSet]) -> None:
    ours, theirs = calibrations
    found = FirstOrder(measure, batch_size=2)(tiny.build("blip2"), ours, 0).importance
    expected = FirstOrder(measure, batch_size=2)(in_transformers(), theirs, 0).importance
    assert {name_in_transformers(name): value for name, value in found.items()} == pytest.approx(
        expected, rel=1e-3
    )


def test_zeroth_order_scores(
    calibrations: tuple[CalibrationSet, CalibrationSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise of a layer depends on its name, so both get the noise of transformers' names."""

    def same_noise(shape: Any, *seed: Any, **options: Any) -> torch.Tensor:
        named = [
            name_in_transformers(part) if isinstance(part, str) and part in names else part for part in seed
        ]
        return gaussian(shape, *named, **options)

    ours, theirs = calibrations
    model, scorer = tiny.build("blip2"), ZerothOrder(batch_size=2, eps=0.05)
    names = {layer.name for layer in model.layers}
    monkeypatch.setattr(probing, "gaussian", same_noise)
    found = scorer(model, ours, 0).importance
    expected = scorer(in_transformers(), theirs, 0).importance
    assert {name_in_transformers(name): value for name, value in found.items()} == pytest.approx(
        expected, rel=1e-3, abs=1e-4
    )


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_masks_and_weights(name: str, calibrations: tuple[CalibrationSet, CalibrationSet]) -> None:
    ours, theirs = calibrations
    model, other = tiny.build("blip2"), in_transformers()
    allocation, same = uneven(model), uneven(other)
    same.keep.update({name_in_transformers(layer): keep for layer, keep in allocation.keep.items()})
    found = prune(model, ours, PRUNERS[name][0], allocation, 2).masks
    expected = prune(other, theirs, PRUNERS[name][0], same, 2).masks
    assert [name_in_transformers(layer) for layer in found] == list(expected)
    for layer, mask in found.items():
        assert torch.equal(mask, expected[name_in_transformers(layer)]), layer
    for one, two in zip(model.layers, other.layers, strict=True):
        torch.testing.assert_close(one.matrix(), two.matrix(), rtol=1e-3, atol=1e-4)
