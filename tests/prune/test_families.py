import math
from typing import Any

import pytest
import torch

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import gaussian
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.ria import RIA
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.score.scores import Scores
from tests import tiny

from . import reference

PRUNERS: dict[str, tuple[LayerPruner, reference.PruneLayer]] = {
    "magnitude": (Magnitude(), reference.magnitude),
    "wanda": (Wanda(), reference.wanda),
    "wanda_2_4": (Wanda("2:4"), reference.wanda_2_4),
    "sparsegpt": (SparseGPT(), reference.sparsegpt),
    "sparsegpt_4_8": (SparseGPT("4:8"), reference.sparsegpt_4_8),
    "ria": (RIA(), reference.ria),
    "admm": (ADMM(), reference.admm),
    "admm_2_4": (ADMM("2:4"), reference.admm_2_4),
    "wanda_repaired": (Wanda(repair=True), reference.wanda_repaired),
}
# What a family can change is what a layer reads; one pruner per statistic, and one without, shows it. A
# release of transformers can't change it for the pruner without.
PAIRS = [
    pytest.param(family, name, marks=() if name in ("wanda", "sparsegpt") else pytest.mark.any_release)
    for family, name in tiny.pairs(PRUNERS, ("magnitude", "wanda", "sparsegpt"))
]
EVERY_TOWER = {family: [tower.name for tower in tiny.build(family).every_tower] for family in tiny.FAMILIES}


def uneven(model: PrunableModel, sparsity: float = 0.5) -> Allocation:
    """Another sparsity for every layer."""
    scores = Scores(
        "test", {layer.name: math.exp(float(gaussian([1], layer.name))) for layer in model.layers}, {}
    )
    return WaterFilling("layer")(model, scores, sparsity)


def uniform(model: PrunableModel) -> Allocation:
    return WaterFilling()(model, None, 0.5)


def assert_equals_by_hand(
    name: str,
    model: PrunableModel,
    other: PrunableModel,
    calibration: CalibrationSet,
    batches: list[Batch] | None = None,
) -> None:
    """Masks, and weights up to rounding, of two equal models, one of which the slow reference prunes."""
    pruner, by_hand = PRUNERS[name]
    allocation = uniform(model) if ":" in pruner.rule.name else uneven(model)
    report = prune(model, calibration, pruner, allocation, batch_size=2)
    masks = reference.prune(other, calibration, by_hand, allocation.keep, batches)
    assert list(report.masks) == list(masks) == [layer.name for layer in model.layers]
    for layer, expected in zip(model.layers, other.layers, strict=True):
        mask = report.masks[layer.name]
        assert mask.shape == layer.weight.shape  # as the parameter is stored, which GPT-2 does transposed
        assert torch.equal(layer.oriented(mask), masks[layer.name]), layer.name
        assert not layer.weight[~mask].any()
        assert int(mask.sum()) == allocation.keep[layer.name]
        torch.testing.assert_close(layer.matrix(), expected.matrix(), rtol=1e-3, atol=1e-4)


def assert_batch_size_changes_nothing(family: str, pruner: LayerPruner, **options: Any) -> None:
    """The samples one by one, in pairs, and all at once; the options are those of ``prune``."""
    models = [tiny.build(family) for _ in range(3)]
    first, *others = (
        prune(model, tiny.samples(family), pruner, uneven(model), batch_size, **options)
        for model, batch_size in zip(models, (1, 2, 100), strict=True)
    )
    for report, model in zip(others, models[1:], strict=True):
        assert all(torch.equal(report.masks[name], mask) for name, mask in first.masks.items())
        assert report.errors == pytest.approx(first.errors, rel=1e-3, abs=1e-5)
        for layer, expected in zip(model.layers, models[0].layers, strict=True):
            torch.testing.assert_close(layer.weight, expected.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("family", "name"), PAIRS)
@pytest.mark.every_run(*tiny.REPRESENTATIVES, "blip2_t5-admm")
def test_equals_pruning_layer_by_layer_with_full_forward_passes(family: str, name: str) -> None:
    calibration = tiny.samples(family, lengths=tiny.UNPADDED.get(family, (7, 9, 7)))
    model, other = (tiny.build(family, towers=EVERY_TOWER[family]) for _ in range(2))
    assert_equals_by_hand(name, model, other, calibration, tiny.one_by_one(family, calibration, 2))


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family not in tiny.MATCHING])
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.every_run("llama", "clip", "blip_vqa", "wanda-t5", "sparsegpt-llava")
def test_batch_size_changes_nothing(family: str, name: str) -> None:
    assert_batch_size_changes_nothing(family, PRUNERS[name][0])


@pytest.mark.parametrize("family", tiny.COMPARING)
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_padding_counts_in_no_statistic(family: str, name: str) -> None:
    models = [tiny.build(family, towers=EVERY_TOWER[family]) for _ in range(2)]
    short = tiny.samples(family, lengths=(7, 7, 7))
    padded = CalibrationSet("padded", tuple(tiny._padded(sample, 11) for sample in short.samples))
    reports = [
        prune(model, data, PRUNERS[name][0], uneven(model), 3)
        for model, data in zip(models, (short, padded), strict=True)
    ]
    assert all(torch.equal(reports[1].masks[layer], mask) for layer, mask in reports[0].masks.items())


@pytest.mark.parametrize(
    ("family", "tower"), [("clip", "text"), ("open_clip", "text"), ("blip_retrieval", "text")]
)
def test_statistics_count_the_real_tokens(family: str, tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if family not in tiny.FAMILIES:
        pytest.skip(f"{family} is not installed")
    counts: set[int] = set()
    value = MeanSquare.value.fget
    monkeypatch.setattr(MeanSquare, "value", property(lambda self: counts.add(self.tokens) or value(self)))
    model = tiny.build(family, towers=[tower])
    prune(model, tiny.samples(family, lengths=(5, 7, 6)), Wanda(), uniform(model), 3)
    passes = (
        {18} if family != "blip_retrieval" else {3 * 18, 2 * 18, 2 * 3 * 5}
    )  # alone, right, wrong; cross-attention reads 5 image tokens
    assert counts == passes


@pytest.mark.parametrize("name", ["wanda", "magnitude"])
def test_what_stays_is_untouched(name: str) -> None:
    model, dense = tiny.build("gpt2"), tiny.build("gpt2")
    report = prune(model, tiny.samples("gpt2"), PRUNERS[name][0], uneven(model), 2)
    for layer, before in zip(model.layers, dense.layers, strict=True):
        assert torch.equal(layer.weight, before.weight * report.masks[layer.name])


@pytest.mark.parametrize("name", PRUNERS)
def test_only_the_layers_to_prune_change(name: str) -> None:
    model = tiny.build("blip2_t5", towers=["vision", "decoder"], skip_layers=(r"decoder\.block\.0", "fc1"))
    model.module.train()
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    report = prune(model, tiny.samples("blip2_t5"), PRUNERS[name][0], uniform(model), 2)
    changed = {key for key, value in model.module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == set(report.masks) == {layer.name for layer in model.layers}
    assert model.module.training
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert not any(module._forward_pre_hooks for module in model.module.modules())
    assert [(block.tower, block.block, block.sparsity) for block in report.blocks] == [
        ("vision", "vision_model.encoder.layers.0", pytest.approx(0.5)),
        ("vision", "vision_model.encoder.layers.1", pytest.approx(0.5)),
        ("decoder", "language_model.decoder.block.0", 0.0),
        ("decoder", "language_model.decoder.block.1", pytest.approx(0.5)),
    ]


@torch.no_grad()
@pytest.mark.parametrize("family", ["opt", "blip2_t5"])
def test_reported_error_is_that_of_the_layers_outputs(family: str) -> None:
    """The inputs of a first block's first layer do not change while it is pruned, so they can be looked at
    afterwards.
    """
    model, dense, calibration = tiny.build(family), tiny.build(family), tiny.samples(family)
    errors = prune(model, calibration, SparseGPT(), uniform(model), 2).errors
    for tower, before in zip(model.towers, dense.towers, strict=True):
        layer, weight = tower.layers[0], before.layers[0].matrix()
        inputs = reference.inputs_of(model, layer, calibration)
        expected = (inputs @ (layer.matrix() - weight).t()).norm() / (inputs @ weight.t()).norm()
        assert errors[layer.name] == pytest.approx(float(expected), rel=1e-3)


def test_sparsegpt_errs_less_than_wanda_and_magnitude_looks_at_no_data() -> None:
    errors = {}
    for name in ("wanda", "sparsegpt", "magnitude"):
        model = tiny.build("llama", skip_layers=(r"layers\.1",))
        errors[name] = prune(
            model, None if name == "magnitude" else tiny.samples("llama"), PRUNERS[name][0], uniform(model), 2
        )
    first = model.layers[0].name
    assert 0 < errors["sparsegpt"].errors[first] < errors["wanda"].errors[first] < 1
    assert set(errors["magnitude"].errors.values()) == {None}
    assert [block.error for block in errors["magnitude"].blocks] == [None, None]


@pytest.mark.parametrize("family", ["gpt2", "blip2_t5"])
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_one_sample(family: str, name: str) -> None:
    calibration = tiny.samples(family, lengths=(5,))
    model, other = tiny.build(family), tiny.build(family)
    allocation = uneven(model)
    report = prune(model, calibration, PRUNERS[name][0], allocation, 8)
    masks = reference.prune(other, calibration, PRUNERS[name][1], allocation.keep)
    for layer in model.layers:
        assert torch.equal(layer.oriented(report.masks[layer.name]), masks[layer.name]), layer.name
