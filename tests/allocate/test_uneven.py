"""What all allocators without scores have in common: exact totals, towers, memory of results, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ecoflap.allocate import parametric
from ecoflap.allocate.alpha_pruning import AlphaPruning
from ecoflap.allocate.atp import ATP
from ecoflap.allocate.choose import choose
from ecoflap.allocate.dlp import DLP
from ecoflap.allocate.er import ER
from ecoflap.allocate.groups import blocks_of
from ecoflap.allocate.lsa import LSA
from ecoflap.allocate.multiflow import Multiflow
from ecoflap.allocate.owl import OWL
from ecoflap.allocate.protocol import Allocator, Context
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import eigenvalues, tail_exponent, wanda_metric
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
TRIED = [
    OWL(spread="auto"),
    DLP(spread="auto"),
    LSA("layer", spread="auto"),
    ATP(),
    AlphaPruning(epsilon="auto"),
]


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    return tiny.build(FAMILY, skip_layers=(r"block\.1\.layer\.0",))  # blocks and towers of different sizes


@pytest.fixture
def context() -> Context:
    return Context(Wanda(), tiny.samples(FAMILY), 2, 0)


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


def test_of_equal_candidates_the_first_is_chosen(model: PrunableModel, context: Context) -> None:
    losses = {0.0: 3.0, 0.1: 2.0, 0.2: None, 0.3: 2.0}
    stored = replace(context, recall=lambda name, _: losses[name["candidate"]])
    for order in ([0.0, 0.1, 0.2, 0.3], [0.3, 0.2, 0.1, 0.0]):
        chosen, found = choose(model, stored, order, lambda _: {}, {}, 2)
        assert chosen == next(one for one in order if losses[one] == 2.0)
        assert found == losses


@pytest.mark.parametrize("allocator", TRIED, ids=label)
@pytest.mark.every_run("lsa-layer", "owl-", "dlp-median")
def test_auto_takes_the_candidate_of_the_smallest_loss(
    model: PrunableModel, context: Context, allocator: Any
) -> None:
    before = {layer.name: layer.matrix().clone() for layer in model.layers}
    memory = Memory()
    found = allocator(model, None, 0.7, replace(context, recall=memory))
    assert all(torch.equal(layer.matrix(), before[layer.name]) for layer in model.layers)
    losses = found.details["losses"]
    chosen = found.details[allocator.parameter]
    assert losses[f"{chosen:g}"] == min(losses.values())
    assert chosen == min((float(one) for one in losses if losses[one] == losses[f"{chosen:g}"]), default=None)
    fixed = replace(allocator, **{allocator.parameter: chosen})(model, None, 0.7, context)
    assert fixed.keep == found.keep
    assert (found.in_trials, fixed.in_trials) == (True, False), "which decides on propagate=auto"
    computed = len(memory.computed)
    assert allocator(model, None, 0.7, replace(context, recall=memory)) == found
    assert len(memory.computed) == computed


@pytest.mark.parametrize("allocator", TRIED, ids=label)
@pytest.mark.every_run("lsa-layer", "atp-")
def test_auto_tries_another_target_anew(model: PrunableModel, context: Context, allocator: Any) -> None:
    memory = Memory()
    for sparsity in (0.5, 0.7):
        found = allocator(model, None, sparsity, replace(context, recall=memory)).details
        assert found["losses"] == allocator(model, None, sparsity, context).details["losses"]


def test_auto_prunes_as_the_fine_stage_does(model: PrunableModel, context: Context) -> None:
    """The loss of a candidate is that of masks on the dense inputs, made here weight by weight."""
    found = ATP(samples=3)(model, None, 0.7, context).details["losses"]
    dense = {layer.name: layer.matrix().clone() for layer in model.layers}
    allocation = ATP(beta=0.12)(model, None, 0.7)
    inputs: dict[str, MeanSquare] = {}
    handles = [
        layer.module.register_forward_pre_hook(
            lambda _, given, name=layer.name: inputs.setdefault(
                name, MeanSquare(given[0].shape[-1], torch.device("cpu"))
            ).update(given[0].flatten(0, -2))
        )
        for layer in model.layers
    ]
    samples = tiny.one_by_one(FAMILY, context.samples, 1)
    with quiet_forward(model.module), torch.no_grad():
        for batch in samples:
            model.loss(batch)
        for handle in handles:
            handle.remove()
        for layer in model.layers:
            metric = wanda_metric(dense[layer.name], inputs[layer.name].value)
            mask = Wanda().rule.select(metric, allocation.keep[layer.name])
            layer.write(dense[layer.name] * mask)
        losses = [float(model.loss(batch)) for batch in samples[:3]]
        for layer in model.layers:
            layer.write(dense[layer.name])
    assert found["0.12"] == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_a_loss_that_is_not_finite_never_wins(
    model: PrunableModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecoflap.allocate.trial import TrialPruner

    losses = iter([math.nan, 3.0, math.inf, 2.0, 2.0, *[5.0] * 6])
    monkeypatch.setattr(TrialPruner, "loss", lambda *_: next(losses))
    details = ATP()(model, None, 0.5, context).details
    assert details["beta"] == pytest.approx(0.3)
    assert list(details["losses"].values())[:4] == [None, 3.0, None, 2.0]
    monkeypatch.setattr(TrialPruner, "loss", lambda *_: math.nan)
    with pytest.raises(NumericalError, match=r"finite at none of 0, 0\.1, .*lower the sparsity"):
        ATP()(model, None, 0.5, context)


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


def test_a_block_without_a_spectrum_counts_as_the_mean_of_the_others() -> None:
    """Of two blocks, both are then as sparse."""
    model = tiny.build("llama")
    for layer in model.blocks[0].layers:
        layer.write(torch.zeros(layer.shape))
    keep = AlphaPruning(epsilon=0.3)(model, None, 0.7).keep
    assert all(abs(count - 0.3 * model.sizes[name]) <= 1 for name, count in keep.items())


def test_a_block_without_a_value_has_the_mean_alpha(model: PrunableModel) -> None:
    blocks = blocks_of(model.towers)
    values = {block.name: float(place**2) for place, block in enumerate(blocks[1:])}
    filled = {blocks[0].name: sum(values.values()) / len(values), **values}
    found, expected = (
        AlphaPruning().counts(model.towers, one, sum(model.sizes.values()) // 2, 0.3)
        for one in (values, filled)
    )
    assert found == expected


def test_a_layer_of_zeros_does_not_count_in_the_alpha_of_its_block() -> None:
    model = tiny.build("llama")
    zeros, *others = model.blocks[0].layers
    zeros.write(torch.zeros(zeros.shape))
    alphas = [tail_exponent(eigenvalues(layer.matrix()), "peak") for layer in others]
    found = AlphaPruning().measure_block(model.blocks[0], None)
    assert found == {model.blocks[0].name: pytest.approx(sum(alphas) / len(alphas))}


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


def test_equal_candidates_are_tried_once(model: PrunableModel, context: Context) -> None:
    memory = Memory()
    ATP()(model, None, 0.0, replace(context, recall=memory))
    assert [name["candidate"] for name in memory.asked] == [0.0]


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


def test_sublayers_are_attention_and_the_rest(model: PrunableModel, context: Context) -> None:
    block = next(tower for tower in model.towers if tower.name == "decoder").blocks[0]
    halves = LSA("sublayer")._groups(block)
    names = [{layer.name.removeprefix(f"{block.name}.layer.")[0] for layer in half} for half in halves]
    assert names == [{"0", "1"}, {"2"}]


def test_a_small_layer_moves_further_for_the_same_error() -> None:
    """As published, a layer of few weights moves by as many weights as a large one."""
    from ecoflap.allocate.lsa import _shares

    assert _shares([10, 30], [0.0, 1.0], 0.1) == pytest.approx([0.2, -0.2 / 3])
    assert _shares([10, 30], [2.0, 2.0], 0.1) == [0, 0]


def test_alpha_pruning_removes_in_proportion_to_what_unequal_blocks_have(model: PrunableModel) -> None:
    """With u from 0 to 1, the sparsity of a block is c (1 - epsilon + 2 epsilon u)."""
    blocks = blocks_of(model.towers)
    sizes = [sum(layer.size for layer in block.layers) for block in blocks]
    assert len(set(sizes)) > 2
    alphas = [3.0 + place for place in range(len(blocks))]
    values = {block.name: alpha for block, alpha in zip(blocks, alphas, strict=True)}
    keep = AlphaPruning().counts(model.towers, values, sum(sizes) * 2 // 5, 0.3)
    ratios = [
        (1 - sum(keep[layer.name] for layer in block.layers) / size) / (0.7 + 0.6 * place / (len(blocks) - 1))
        for place, (block, size) in enumerate(zip(blocks, sizes, strict=True))
    ]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), abs=0.01)


@pytest.mark.parametrize(("sparsity", "reach"), [(0.3, 0.6), (0.8, 0.4)])
@pytest.mark.parametrize("scope", ["tower", "model"])
def test_the_last_beta_leaves_the_first_or_the_last_block_at_the_end(
    model: PrunableModel, scope: str, sparsity: float, reach: float
) -> None:
    """Sparsities go from s - reach / 2 to s + reach / 2 in the longest part, within 0 to 1."""
    numbers = [len(blocks_of([tower])) for tower in model.towers]
    steps = (sum(numbers) if scope == "model" else max(numbers)) - 1
    tried = ATP(scope=scope).candidates(model, sparsity)
    assert tried == pytest.approx([place / 10 * reach / steps for place in range(11)], abs=1e-6)


def test_the_value_of_a_block_is_the_mean_error_of_however_many_layers() -> None:
    layers = [SimpleNamespace(name=name) for name in "abc"]
    errors = {"a": 1.0, "b": 2.0, "c": 6.0}
    assert LSA().value_of(SimpleNamespace(layers=layers), errors) == -3.0  # type: ignore[arg-type]
    assert LSA().value_of(SimpleNamespace(layers=layers[:2]), errors) == -1.5  # type: ignore[arg-type]


class Named(NamedTuple):
    """A layer."""

    name: str


def test_the_path_of_a_block_makes_no_layer_attention() -> None:
    names = ["attention_stack.0.self_attn.q", "attention_stack.0.mlp.up"]
    block = SimpleNamespace(name="attention_stack.0", layers=[Named(name) for name in names])
    halves = LSA("sublayer")._groups(block)  # type: ignore[arg-type]
    assert [[layer.name for layer in half] for half in halves] == [[name] for name in names]
