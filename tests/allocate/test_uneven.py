"""What all allocators without scores have in common: exact totals, towers, values, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.allocate import parametric
from ecoflap.allocate.alpha_pruning import AlphaPruning
from ecoflap.allocate.atp import ATP
from ecoflap.allocate.dlp import DLP
from ecoflap.allocate.er import ER
from ecoflap.allocate.groups import blocks_of
from ecoflap.allocate.lsa import LSA
from ecoflap.allocate.multiflow import Multiflow
from ecoflap.allocate.owl import OWL
from ecoflap.allocate.protocol import Allocator, Context
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.inputs import measure_dense
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.wanda import Wanda
from tests import tiny
from tests.allocate.memory import Memory
from tests.allocate.test_water_filling import check_counts

pytestmark = [pytest.mark.any_release, pytest.mark.long]

FAMILY = "blip2_t5"
MEASURED = [OWL(), DLP(), DLP(average="mean"), LSA(), LSA("sublayer"), LSA("layer"), AlphaPruning()]
ALL = [*MEASURED, ATP(beta=0.1), ER(), Multiflow()]


def label(allocator: Allocator) -> str:
    return f"{allocator.name}-{getattr(allocator, 'granularity', '')}{getattr(allocator, 'average', '')}"


@pytest.mark.parametrize("allocator", ALL, ids=label)
def test_totals_are_exact_in_every_tower(model: PrunableModel, context: Context, allocator: Any) -> None:
    once = replace(context, recall=Memory())  # what is measured depends on neither scope nor target
    for scope, sparsity in product(["model", "tower"], [0.0, 0.613, 0.95, 0.999]):
        allocation = replace(allocator, scope=scope)(model, None, sparsity, once)
        check_counts(model, allocation, sparsity)
        parts = [model.layers] if scope == "model" else [tower.layers for tower in model.towers]
        for layers in parts:
            kept = sum(allocation.keep[layer.name] for layer in layers)
            total = sum(layer.size for layer in layers)
            assert kept == math.floor(round(total * (1 - sparsity), 6))


@pytest.mark.parametrize("allocator", [OWL(), DLP(), LSA(), ATP(beta=0.1), AlphaPruning()], ids=label)
def test_the_layers_of_a_block_share_its_sparsity(
    model: PrunableModel, context: Context, allocator: Allocator
) -> None:
    allocation = allocator(model, None, 0.6, context)
    assert allocation.granularity == "block"
    for block in blocks_of(model.towers):
        names = [layer.name for layer in block.layers]
        for name in names:
            share = 1 - allocation.sparsity_of(names)
            assert abs(allocation.keep[name] - allocation.sizes[name] * share) <= 1


@pytest.mark.parametrize("allocator", [OWL(spread=0), DLP(spread=0), ATP(beta=0), AlphaPruning(epsilon=0)])
def test_a_parameter_of_zero_is_uniform(model: PrunableModel, context: Context, allocator: Allocator) -> None:
    assert allocator(model, None, 0.6, context).keep == WaterFilling()(model, None, 0.6).keep


def by_hand(allocator: OWL | DLP, model: PrunableModel, squares: Mapping[str, Tensor]) -> dict[str, float]:
    """The values of blocks, from the mean squares of the layers' inputs."""
    expected = {}
    for block in blocks_of(model.towers):
        sizes = [
            (layer.matrix().double().abs() * squares[layer.name].sqrt()).flatten() for layer in block.layers
        ]
        every = torch.cat(sizes)
        if isinstance(allocator, OWL):
            expected[block.name] = 100 * float((every > 5 * every.mean()).double().mean())
        else:
            expected[block.name] = float(every.median() if allocator.average == "median" else every.mean())
    return expected


@pytest.mark.parametrize("allocator", [OWL(), DLP(), DLP(average="mean")], ids=label)
def test_values_equal_a_full_forward_pass(
    model: PrunableModel, context: Context, allocator: OWL | DLP
) -> None:
    """Inputs come from hooks during plain forward passes of one sample at a time."""
    inputs: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in model.layers}
    handles = [
        layer.module.register_forward_pre_hook(
            lambda _, given, name=layer.name: inputs[name].append(given[0].flatten(0, -2))
        )
        for layer in model.layers
    ]
    with quiet_forward(model.module), torch.no_grad():
        for batch in tiny.one_by_one(FAMILY, context.samples, 1):
            model.loss(batch)
    for handle in handles:
        handle.remove()
    squares = {name: torch.cat(read).double().square().mean(dim=0) for name, read in inputs.items()}
    found = allocator(model, None, 0.6, context).details["values"]
    assert found == pytest.approx(by_hand(allocator, model, squares), rel=1e-4)


@pytest.mark.parametrize("allocator", MEASURED, ids=label)
def test_targets_share_one_measurement_and_its_batch_size_changes_nothing(
    model: PrunableModel, context: Context, allocator: Allocator
) -> None:
    memory = Memory()
    first = allocator(model, None, 0.5, replace(context, recall=memory))
    second = allocator(model, None, 0.7, replace(context, recall=memory))
    assert len(memory.computed) == 1
    assert first.details["values"] == second.details["values"]
    alone = allocator(model, None, 0.7, replace(context, batch_size=5)).details["values"]
    assert alone == pytest.approx(second.details["values"], rel=1e-4)


@pytest.mark.parametrize("allocator", [OWL(), DLP()], ids=label)
def test_values_are_those_of_the_chosen_tokens(allocator: Any) -> None:
    model, samples = tiny.build("llava", towers=["language"]), tiny.samples("llava")
    context = Context(Wanda(), samples, 2, 0)
    every, text = (
        allocator(model, None, 0.5, replace(context, tokens=tokens)).details["values"]
        for tokens in ("all", "text")
    )
    squares = {
        name: one[:-1] / one[-1] for name, one in measure_dense(model, samples, 5, tokens="text").items()
    }
    assert text == pytest.approx(by_hand(allocator, model, squares), rel=1e-4)
    assert text != pytest.approx(every, rel=1e-4)


@pytest.mark.parametrize("allocator", [*MEASURED, ER(), ATP(beta=0.3), Multiflow()], ids=label)
def test_one_block_and_layers_of_zeros(allocator: Allocator) -> None:
    model = tiny.build("llama", skip_layers=(r"layers\.1\.", "gate_proj"))
    for layer in model.layers:
        layer.write(torch.zeros(layer.shape))
    context = Context(Wanda(), tiny.samples("llama"), 2, 0)
    check_counts(model, allocator(model, None, 0.7, context), 0.7)


@pytest.mark.parametrize("allocator", [OWL(), DLP(), LSA(), AlphaPruning()], ids=label)
def test_a_dead_block_among_others(allocator: Allocator) -> None:
    model = tiny.build("llama")
    for layer in model.blocks[0].layers:
        layer.write(torch.zeros(layer.shape))
    context = Context(Wanda(), tiny.samples("llama"), 2, 0)
    check_counts(model, allocator(model, None, 0.7, context), 0.7)


@pytest.mark.parametrize("family", ["gpt2", "opt", "torch_encoder"])
@pytest.mark.parametrize("allocator", [OWL(), LSA("sublayer"), AlphaPruning(), ER()], ids=label)
def test_layers_of_other_orientations(family: str, allocator: Allocator) -> None:
    model = tiny.build(family)
    context = Context(Wanda(), tiny.samples(family), 2, 0)
    check_counts(model, allocator(model, None, 0.7, context), 0.7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("allocator", MEASURED, ids=label)
def test_half_precision(dtype: torch.dtype, allocator: Allocator) -> None:
    model = tiny.build("llama")
    context = Context(Wanda(), tiny.samples("llama"), 2, 0)
    wide = allocator(model, None, 0.7, context).details["values"]
    model.module.to(dtype)
    found = allocator(model, None, 0.7, context).details["values"]
    if allocator.name != "owl":  # a count, which may change by a weight
        assert found == pytest.approx(wide, rel=0.1)
    check_counts(model, allocator(model, None, 0.7, context), 0.7)


def test_values_that_are_not_finite(context: Context) -> None:
    model = tiny.build(FAMILY)
    first = model.layers[0]
    weight = first.matrix().clone()
    weight[0, 0] = math.nan
    first.write(weight)
    for allocator in (OWL(), DLP(), LSA(), AlphaPruning()):
        with pytest.raises(NumericalError, match="what the allocation measures there is nan"):
            allocator(model, None, 0.7, context)


def test_one_sample_suffices(model: PrunableModel, context: Context) -> None:
    one = replace(context, calibration=context.samples.take(1))
    for allocator in (OWL(), DLP(), LSA(), ATP()):
        check_counts(model, allocator(model, None, 0.7, one), 0.7)


def test_weights_alone_need_no_samples(model: PrunableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parametric, "require_calls", None)
    context = Context(Magnitude(), None, 2, 0)
    check_counts(model, AlphaPruning()(model, None, 0.7, context), 0.7)


@pytest.mark.parametrize("allocator", [*ALL, ATP()], ids=label)
def test_what_is_required(allocator: Allocator) -> None:
    requires = allocator.requires
    assert requires.scores == "none"
    runs_samples = allocator.name in ("owl", "dlp", "lsa") or allocator == ATP()
    assert requires.calibration == runs_samples
    assert requires.weights == (runs_samples or allocator.name in ("alpha_pruning", "multiflow"))
    assert (allocator.footprint is not None) == runs_samples


@pytest.mark.parametrize("allocator", ALL, ids=label)
def test_masks_that_fix_every_sparsity_are_refused(allocator: Allocator) -> None:
    allocator.check_pruner(Wanda())
    with pytest.raises(UserError, match=r"pruner\.mask=2:4 fixes every layer's sparsity: there is nothing"):
        allocator.check_pruner(Wanda("2:4"))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: OWL(spread="some"), r"allocation\.spread=some is neither a number nor auto"),
        (lambda: OWL(spread=[0.1]), r"allocation\.spread=\[0\.1\] is neither a number nor auto"),  # type: ignore[arg-type]
        (lambda: OWL(spread=-0.1), r"allocation\.spread=-0\.1 must be a number of at least 0"),
        (lambda: OWL(spread=math.nan), r"allocation\.spread=nan must be"),
        (lambda: OWL(outlier=0), r"allocation\.outlier=0 must be a number above 0"),
        (lambda: OWL(scope="block"), r"allocation\.scope=block is not known"),
        (lambda: OWL(samples=0), r"allocation\.samples=0 must be at least 1"),
        (lambda: DLP(average="sum"), r"allocation\.average=sum is not known"),
        (lambda: LSA("tower"), r"allocation\.granularity=tower is not known"),
        (lambda: LSA(share=1.0), r"allocation\.share=1\.0 is outside \(0, 1\)"),
        (lambda: LSA(columns=0), r"allocation\.columns=0 must be at least 1"),
        (lambda: ATP(beta="none"), r"allocation\.beta=none is neither"),
        (lambda: AlphaPruning(epsilon=1.5), r"allocation\.epsilon=1\.5 is outside 0 \(uniform\) to 1"),
        (lambda: ER("block"), r"allocation\.scope=block is not known"),
    ],
)
def test_refusals(make: Callable[[], Allocator], match: str) -> None:
    with pytest.raises(UserError, match=match):
        make()


@pytest.mark.parametrize("allocator", ALL, ids=label)
def test_an_impossible_target(model: PrunableModel, context: Context, allocator: Allocator) -> None:
    with pytest.raises(UserError, match=r"sparsity=1 is outside \[0, 1\)"):
        allocator(model, None, 1, context)
