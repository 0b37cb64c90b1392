"""Global pruners against sorting all weights of the model in one list."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import ecoflap
from ecoflap.allocate.allocation import UNITS, Allocation
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.models.loading.loader import prunable
from ecoflap.prune import global_gradient
from ecoflap.prune.global_gradient import GlobalGradient, mean_gradients
from ecoflap.prune.global_magnitude import GlobalMagnitude
from ecoflap.prune.global_masks import choose_masks
from ecoflap.prune.protocol import ModelPruner
from ecoflap.prune.report import BlockReport, PruneReport
from ecoflap.prune.whole_model import prune_whole
from tests import tiny
from tests.score.test_first_order import nearly_flat


def smallest(scores: dict[str, Tensor], remove: int) -> dict[str, Tensor]:
    """Masks, True where kept, of removing the ``remove`` smallest of all entries."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[flat.argsort(stable=True)[:remove]] = False
    parts = mask.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for part, (name, score) in zip(parts, scores.items(), strict=True)}


def groups(model: PrunableModel, scope: str) -> list[list]:
    return [model.layers] if scope == "model" else [tower.layers for tower in model.towers]


@pytest.mark.parametrize("scope", ["model", "tower"])
@pytest.mark.parametrize("family", ["gpt2", "blip2_t5", "clip"])
def test_magnitude_removes_the_smallest_of_all(family: str, scope: str) -> None:
    if family not in tiny.FAMILIES:
        pytest.skip(f"{family} is not in the installed transformers")
    model = tiny.build(family)
    expected = {}
    for layers in groups(model, scope):
        scores = {layer.name: layer.weight.detach().abs() for layer in layers}
        total = sum(score.numel() for score in scores.values())
        expected |= smallest(scores, total - total * 4 // 10)
    allocation, report = GlobalMagnitude(scope).prune(model, None, 0.6)
    assert all(torch.equal(report.masks[name], mask) for name, mask in expected.items())
    assert all(torch.equal(layer.weight != 0, expected[layer.name]) for layer in model.layers)
    assert allocation.keep == {name: int(mask.sum()) for name, mask in expected.items()}


@pytest.mark.parametrize(("scope", "iterations"), [("tower", 1), ("tower", 3), ("model", 2)])
def test_gradient_is_measured_anew_at_each_step(scope: str, iterations: int) -> None:
    family = "t5"
    model, other, calibration = tiny.build(family), tiny.build(family), tiny.samples(family)
    masks = {layer.name: torch.ones_like(layer.weight, dtype=torch.bool) for layer in other.layers}
    for step in range(1, iterations + 1):
        weights = [layer.weight for layer in other.layers]
        means = [torch.zeros_like(weight) for weight in weights]
        for sample in calibration.samples:
            loss = other.loss({name: tensor[None] for name, tensor in sample.items()}).mean()
            for mean, gradient in zip(means, torch.autograd.grad(loss, weights), strict=True):
                mean += gradient.abs() / len(calibration)
        for layers in groups(other, scope):
            scores = {
                layer.name: (layer.weight.detach().abs() * means[other.layers.index(layer)])
                * masks[layer.name]
                for layer in layers
            }
            kept = int(
                sum(score.numel() for score in scores.values()) * (1 - 0.5 ** (iterations / step)) + 1e-9
            )
            masks |= smallest(scores, sum(score.numel() for score in scores.values()) - kept)
        with torch.no_grad():
            for layer in other.layers:
                layer.weight.mul_(masks[layer.name])
    _, report = GlobalGradient(scope, iterations, samples=5, batch_size=1).prune(model, calibration, 0.5)
    for name, mask in masks.items():
        assert (report.masks[name] != mask).float().mean() < 0.01, (
            name
        )  # the sum's order moves a few near the threshold
    assert sum(int(mask.sum()) for mask in report.masks.values()) == sum(
        int(mask.sum()) for mask in masks.values()
    )


def test_the_first_samples_alone_are_read() -> None:
    calibration = tiny.samples("llama")
    masks = []
    for samples in (calibration, calibration.take(2)):
        _, report = GlobalGradient(iterations=2, samples=2).prune(tiny.build("llama"), samples, 0.5)
        masks.append(report.masks)
    assert len(calibration) > 2
    assert all(torch.equal(masks[1][name], mask) for name, mask in masks[0].items())


def test_batches_weigh_as_many_as_their_samples() -> None:
    model, batches = tiny.build("llama"), tiny.samples("llama", lengths=(5, 5, 7)).batches(2)
    layer, expected = model.layers[0], torch.zeros(model.layers[0].weight.shape)
    for batch in batches:
        (gradient,) = torch.autograd.grad(model.loss(batch).mean(), [layer.weight])
        expected += gradient.abs() * len(batch["input_ids"]) / 3
    assert len(batches) == 2
    torch.testing.assert_close(mean_gradients(model, batches)[layer.name], expected, rtol=1e-4, atol=1e-6)


def test_a_removed_weight_never_comes_back() -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    _, first = GlobalGradient("model", 1).prune(tiny.build("llama"), calibration, 0.5**3)
    _, third = GlobalGradient("model", 3).prune(model, calibration, 0.5)
    assert not any((third.masks[name] & ~mask).any() for name, mask in first.masks.items())


def test_a_removed_weight_stays_removed_where_no_kept_one_has_a_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    seen: list[dict[str, Tensor]] = []

    def vanishing(model: PrunableModel, _: Any) -> dict[str, Tensor]:
        seen.append({layer.name: layer.weight == 0 for layer in model.layers})
        ones = {layer.name: torch.ones_like(layer.weight) for layer in model.layers}
        return ones if len(seen) == 1 else {name: one * 0 for name, one in ones.items()}

    monkeypatch.setattr(global_gradient, "mean_gradients", vanishing)
    _, report = GlobalGradient("model", iterations=2).prune(model, calibration, 0.5)
    assert sum(int(removed.sum()) for removed in seen[1].values()) > 0
    assert not any((report.masks[name] & removed).any() for name, removed in seen[1].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients(dtype: torch.dtype) -> None:
    model, calibration = nearly_flat(), tiny.samples("llama")
    model.module.to(dtype)
    half = mean_gradients(model, calibration.batches(1))
    model.module.float()
    whole = mean_gradients(model, calibration.batches(1))
    for name, gradient in whole.items():
        assert float((half[name] - gradient).norm()) < 0.1 * float(gradient.norm()), name


def test_a_tower_that_the_loss_does_not_see() -> None:
    module = tiny.build("llama").module
    module.model.layers[1].spare = nn.Linear(4, 4)
    calibration = tiny.samples("llama")
    _, report = GlobalGradient().prune(
        prunable("tiny", module, None, language_loss, Selection()), calibration, 0.1
    )
    assert not report.masks["model.layers.1.spare.weight"].any()  # worth nothing, and the first to go
    alone = prunable("tiny", module, None, language_loss, Selection(None, [r"^(?!.*spare).*$"]))
    with pytest.raises(UserError, match="the loss depends on none of the layers"):
        GlobalGradient().prune(alone, calibration, 0.1)


@pytest.mark.parametrize("pruner", [GlobalMagnitude(), GlobalGradient(samples=2)])
def test_blocks_are_reported_with_the_time_since_pruning_began(
    pruner: ModelPruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*given: Any) -> dict[str, torch.Tensor]:
        time.sleep(0.05)
        return choose_masks(*given)

    monkeypatch.setattr(sys.modules[type(pruner).__module__], "choose_masks", slowly)
    seen: list[BlockReport] = []
    model = tiny.build("llama", skip_layers=(r"layers\.0\.",))
    _, report = prune_whole(model, tiny.samples("llama"), pruner, 0.5, seen.append)
    assert seen == report.blocks
    assert [block.block for block in seen] == ["model.layers.0", "model.layers.1"]
    assert all(block.seconds > 0.05 for block in seen)


def test_the_sparsity_of_a_block_is_that_of_its_layers() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.module.model.layers[1].mlp.up_proj.weight *= 10
    _, report = prune_whole(model, None, GlobalMagnitude(), 0.5, lambda _: None)
    for block, found in zip(model.blocks, report.blocks, strict=True):
        zeros = torch.cat([layer.weight.flatten() == 0 for layer in block.layers])
        assert found.sparsity == pytest.approx(float(zeros.double().mean())), block.name
    assert report.blocks[0].sparsity > report.blocks[1].sparsity + 0.05


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"pruner\.scope=block is not known; the choices are model, tower"):
        GlobalMagnitude("block")
    with pytest.raises(UserError, match=r"pruner\.iterations"):
        GlobalGradient(iterations=0)
    model = tiny.build("llama")
    with torch.no_grad():
        model.layers[0].weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN or infinite"):
        GlobalMagnitude().prune(model, None, 0.5)


@dataclass(frozen=True)
class Changed(ModelPruner):
    """Global magnitude, whose result is changed."""

    change: Callable[[PrunableModel, Allocation, PruneReport], Allocation | None]
    name: str = "changed"
    requires_calibration: ClassVar[bool] = False

    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, seed: int = 0
    ) -> tuple[Allocation, PruneReport]:
        allocation, report = GlobalMagnitude().prune(model, calibration, sparsity)
        with torch.no_grad():
            return self.change(model, allocation, report) or allocation, report


def counted(
    change: Callable[[dict[str, int], str], dict[str, int]],
) -> Callable[[PrunableModel, Allocation, PruneReport], Allocation]:
    return lambda model, allocation, _: replace(
        allocation, keep=allocation.keep | change(allocation.keep, model.layers[0].name)
    )


def moved(keep: dict[str, int], first: str) -> dict[str, int]:
    second = next(name for name in keep if name != first)
    return {first: keep[first] - 1, second: keep[second] + 1}


def spoilt(value: float, kept: bool) -> Callable[[PrunableModel, Allocation, PruneReport], None]:
    """A weight of the first layer set to a value."""

    def change(model: PrunableModel, _: Allocation, report: PruneReport) -> None:
        weight = model.layers[0].weight
        weight[tuple((report.masks[model.layers[0].name] == kept).nonzero()[0])] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            counted(lambda keep, first: {first: keep[first] - 1}),
            r"pruner=changed returned counts that keep \d.* keep_total",
        ),
        (counted(moved), r"q_proj.*: pruner=changed keeps \d+ weights and its allocation says \d+"),
        (lambda _, allocation, __: replace(allocation, target=0.4), "the target 0.4, and sparsity=0.5"),
        (lambda model, _, report: report.masks.__delitem__(model.layers[0].name), "no bool mask .*q_proj"),
        (
            lambda model, allocation, _: replace(allocation, total=UNITS),
            r"pruner=changed left [\d,]+ weights and its allocation says",
        ),
        (spoilt(math.nan, kept=True), r"q_proj.*: pruner=changed made weights that are not finite"),
        (spoilt(1.0, kept=False), r"q_proj.*: weights that pruner=changed removes are not zero"),
    ],
    ids=["total", "count", "target", "mask", "units", "nan", "not zero"],
)
def test_a_pruner_that_says_other_than_it_does_is_refused(
    change: Callable[[PrunableModel, Allocation, PruneReport], Allocation | None], message: str
) -> None:
    with pytest.raises((UserError, NumericalError), match=message):
        ecoflap.prune(tiny.build("llama"), sparsity=0.5, pruner=Changed(change))


@pytest.mark.parametrize("returned", [None, {}])
def test_a_pruner_that_returns_something_else_is_refused(returned: Any) -> None:
    class Forgetful(Changed):
        def prune(self, *given: Any, **options: Any) -> Any:
            super().prune(*given, **options)
            return returned

    with pytest.raises(UserError, match=f"pruner=changed returned a {type(returned).__name__}; correct it"):
        ecoflap.prune(tiny.build("llama"), sparsity=0.5, pruner=Forgetful(lambda *_: None))


def test_a_pruner_that_zeroes_more_than_its_masks_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def change(model: PrunableModel, _: Allocation, __: PruneReport) -> None:
        model.layers[0].weight.zero_()

    found = ecoflap.prune(tiny.build("llama"), sparsity=0.5, pruner=Changed(change))
    name = next(iter(found.allocation.keep))
    assert found.report.zeroed == {name: found.allocation.keep[name]}
    assert "pruner=changed set 0." in caplog.text
    assert "the model had zeros before" not in caplog.text


def test_zeros_of_the_dense_model_that_masks_keep_are_not_the_pruners() -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        for layer in model.layers:
            layer.weight[len(layer.weight) // 4 :] = 0
    _, report = prune_whole(model, None, GlobalMagnitude(), 0.5, lambda _: None)
    assert any((report.masks[layer.name] & (layer.weight == 0)).any() for layer in model.layers)
    assert report.zeroed == {}
