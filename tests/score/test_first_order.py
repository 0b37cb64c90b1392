import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.allocate.in_context import InContext
from ecoflap.allocate.protocol import Context
from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.models.loading.loader import prunable
from ecoflap.prune.wanda import Wanda
from ecoflap.score.first_order import MEASURES, FirstOrder, measure_gradients
from ecoflap.score.pass_size import LiveBytes
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny
from tests.stack import mean_square, stack

pytestmark = pytest.mark.long

BY_HAND = {
    "gradient_norm": lambda w, g: math.sqrt(sum(x * x for x in g)),
    "gradient": lambda w, g: sum(abs(x) for x in g),
    "weight_gradient": lambda w, g: sum(abs(x * y) for x, y in zip(w, g, strict=True)),
    "weight_gradient_square": lambda w, g: sum((x * y) ** 2 for x, y in zip(w, g, strict=True)),
}


def gradients_per_batch(
    model: PrunableModel, calibration: CalibrationSet, batch_size: int
) -> list[tuple[int, tuple[Tensor, ...]]]:
    """(samples, gradient of the mean loss for every layer) of each batch, from plain autograd."""
    weights = [layer.weight for layer in model.layers]
    batches = loss_batches(model, calibration, batch_size)
    result = []
    for batch in batches:
        gradients = torch.autograd.grad(model.loss(batch).mean(), weights, allow_unused=True)
        count = len(next(iter(batch.values())))
        result.append(
            (
                count,
                tuple(
                    torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)
                ),
            )
        )
    return result


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.every_run(*tiny.REPRESENTATIVES, "qwen2_5_vl", "bart", "blip_retrieval", "open_clip", "vit")
def test_measures_equal_plain_autograd(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    batches = gradients_per_batch(model, calibration, 2)
    for measure, by_hand in BY_HAND.items():
        scores = FirstOrder(measure, samples=5, batch_size=2)(model, calibration, 0)
        assert list(scores.importance) == [layer.name for layer in model.layers]
        for place, layer in enumerate(model.layers):
            weight = layer.weight.flatten().tolist()
            expected = (
                sum(
                    count * by_hand(weight, gradients[place].flatten().tolist())
                    for count, gradients in batches
                )
                / 5
            )
            assert scores.importance[layer.name] == pytest.approx(expected, rel=1e-4), (measure, layer.name)
    assert set(BY_HAND) == set(MEASURES)


@pytest.mark.parametrize("options", [{"measure": "gradient_norm"}, {"samples": 3}, {"batch_size": 3}])
def test_other_options_are_another_entry_of_the_cache(options: dict) -> None:
    assert FirstOrder(**options).identity() != FirstOrder().identity()


def test_only_the_first_samples_are_used() -> None:
    model, calibration = tiny.build("opt"), tiny.samples("opt")
    few = FirstOrder(samples=2, batch_size=1)(model, calibration, 0)
    assert few.details["samples"] == 2
    assert FirstOrder(samples=99)(model, calibration, 0).details["samples"] == len(calibration)
    assert few == FirstOrder(samples=2, batch_size=1)(model, calibration.take(2), 0)
    assert few.importance != FirstOrder(samples=3, batch_size=1)(model, calibration, 0).importance


@pytest.mark.parametrize("family", ["llama", "blip2_t5"])
def test_the_model_is_left_as_it_was(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    model.module.train()
    model.layers[0].weight.requires_grad_(False)
    before = model.fingerprint()
    requires = [parameter.requires_grad for parameter in model.module.parameters()]
    FirstOrder()(model, calibration, 0)
    assert model.fingerprint() == before
    assert [parameter.requires_grad for parameter in model.module.parameters()] == requires
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.module.parameters())
    assert model.module.training


def test_each_gradient_is_gone_before_the_next_exists() -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    held = []
    handles = [
        layer.weight.register_hook(
            lambda _: held.append(sum(other.weight.grad is not None for other in model.layers))
        )
        for layer in model.layers
    ]
    FirstOrder(batch_size=3)(model, calibration, 0)
    assert len(held) == 2 * len(handles)
    assert max(held) == 0


@pytest.mark.parametrize("family", ["llama", "t5", "blip2_opt", "blip_retrieval"])
def test_recomputing_blocks_changes_no_number(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    assert FirstOrder(recompute=True)(model, calibration, 0) == FirstOrder(recompute=False)(
        model, calibration, 0
    )
    assert not any("forward" in block.module.__dict__ for block in model.blocks)


def test_recomputed_blocks_keep_no_activations() -> None:
    peaks = {}
    for recompute in (True, False):
        model = tiny.build("llama")
        model.module.model.layers.extend(
            tiny.build("llama", seed=seed).module.model.layers[0] for seed in range(6)
        )
        calibration = tiny.samples("llama", lengths=(30,) * 8)
        deep = prunable("deep", model.module, None, language_loss, Selection())
        deep.module.config.num_hidden_layers = 8
        with LiveBytes() as live:
            FirstOrder(recompute=recompute)(deep, calibration, 0)
        peaks[recompute] = live.peak
    assert peaks[True] < peaks[False] / 2


@torch.no_grad()
def nearly_flat() -> PrunableModel:
    """A model whose loss hardly moves: in fp16 most gradients are below the smallest number."""
    model = tiny.build("llama")
    model.module.lm_head.weight.mul_(1e-5)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients(dtype: torch.dtype) -> None:
    model, calibration = nearly_flat(), tiny.samples("llama")
    model.module.to(dtype)
    half = FirstOrder("gradient")(model, calibration, 0).importance
    model.module.float()
    assert half == pytest.approx(FirstOrder("gradient")(model, calibration, 0).importance, rel=0.1)


class Narrow(nn.Module):
    """One of its two layers may be in fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 8), nn.Linear(8, 8).half()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.wide(self.narrow(hidden.to(self.narrow.weight.dtype)).float())


@pytest.mark.parametrize(("height", "column"), [(1e-6, 1.0), (1.0, 100.0)])
def test_one_layer_in_fp16_neither_underflows_nor_overflows_in_part(height: float, column: float) -> None:
    model = stack(Narrow, loss=lambda *given: height * mean_square(*given))
    rows = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    rows[..., 0] *= column
    half = measure_gradients(model, {"x": rows}, lambda _, gradient: gradient.clone(), recompute=False)
    model.module.float()
    exact = measure_gradients(model, {"x": rows}, lambda _, gradient: gradient.clone(), recompute=False)
    for layer, gradient in exact.items():
        assert float((half[layer] - gradient).norm() / gradient.norm()) < 0.01


@pytest.mark.parametrize("towers", [["vision"], ["decoder"], ["qformer", "encoder"]])
def test_restricted_towers_get_the_same_scores(towers: list[str]) -> None:
    calibration = tiny.samples("blip2_t5")
    whole = FirstOrder()(
        tiny.build("blip2_t5", towers=["vision", "qformer", "encoder", "decoder"]), calibration, 0
    )
    part = FirstOrder()(tiny.build("blip2_t5", towers=towers), calibration, 0)
    assert len(part.importance) < len(whole.importance)
    for name, score in part.importance.items():
        assert score == pytest.approx(whole.importance[name], rel=1e-6)
        assert part.standard_error[name] == pytest.approx(whole.standard_error[name], rel=1e-5)


def spare_layer(skip: list[str]) -> PrunableModel:
    module = tiny.build("llama").module
    module.model.layers[1].spare = nn.Linear(4, 4)
    return prunable("tiny", module, None, language_loss, Selection(None, skip))


def test_layer_that_the_loss_does_not_depend_on_is_worth_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        importance = FirstOrder()(spare_layer([]), tiny.samples("llama"), 0).importance
    assert [name for name, value in importance.items() if value == 0] == ["model.layers.1.spare.weight"]
    assert "does not depend on 1 layers, such as model.layers.1.spare.weight" in caplog.text


SCORED: dict[str, Callable[[PrunableModel, CalibrationSet], Any]] = {
    "first_order": lambda model, samples: FirstOrder()(model, samples, 0),
    "derivative": lambda model, samples: ZerothOrder(probe="derivative")(model, samples, 0),
    "in_context": lambda model, samples: InContext()(model, None, 0.5, Context(Wanda(), samples, 2, 0)),
}


@pytest.mark.parametrize("method", SCORED)
@pytest.mark.parametrize(
    ("frozen", "advice"),
    [("model.layers.0.mlp", r"leave them dense, add skip_layers=\[.*\], or use"), ("model", "use")],
)
def test_layers_that_run_without_gradients_are_refused(method: str, frozen: str, advice: str) -> None:
    """They count for the loss, and no gradient says so: they were scored 0, and pruned first."""
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    child = model.module.get_submodule(frozen)
    child.forward = torch.no_grad()(child.forward)  # type: ignore[method-assign]
    said = rf"{frozen}\..* and \d+ more layers without recording gradients .*; {advice} score=zeroth_order"
    with pytest.raises(UserError, match=said):
        SCORED[method](model, calibration)
    assert ZerothOrder(samples=2, batch_size=2)(model, calibration, 0).importance[model.layers[-1].name] > 0


def test_layers_that_also_run_without_gradients() -> None:
    """A pass ahead, such as one that looks for hard negatives, is none of the loss."""
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    expected = FirstOrder()(model, calibration, 0).importance
    plain = model.loss_function

    def ahead(module: nn.Module, batch: Batch, copies: int) -> Tensor:
        with torch.no_grad():
            plain(module, batch, copies)
        return plain(module, batch, copies)

    assert FirstOrder()(replace(model, loss_function=ahead), calibration, 0).importance == expected


def test_loss_that_depends_on_none_of_the_layers() -> None:
    with pytest.raises(UserError, match="depends on none of the layers"):
        FirstOrder()(spare_layer(["proj"]), tiny.samples("llama"), 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weight(value: float) -> None:
    model = tiny.build("llama")
    with torch.no_grad():
        model.layers[3].weight[0, 0] = value
    with pytest.raises(NumericalError, match="the loss of a calibration batch is nan"):
        FirstOrder()(model, tiny.samples("llama"), 0)
    assert all(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"measure": "gradient_nrm"},
            r"score\.measure=gradient_nrm is not known; did you mean gradient_norm",
        ),
        ({"samples": 0}, "samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FirstOrder(**arguments)
