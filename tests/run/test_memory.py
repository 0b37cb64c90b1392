"""What the plan says of memory is what the steps take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import transformers as hf

from benchmarks.models import llama, tokens
from ecoflap.allocate.evopress import EvoPress
from ecoflap.allocate.in_context import InContext
from ecoflap.allocate.owl import OWL
from ecoflap.allocate.protocol import Allocator, Context
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.console.telemetry import measure
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.experts import SHARED_SINCE
from ecoflap.models.core.mixtures import find_mixtures
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.models.loading.loader import prunable
from ecoflap.models.offload.placement import Placement, Planned
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.expert_scores import score_experts
from ecoflap.prune.global_gradient import GlobalGradient
from ecoflap.prune.global_magnitude import GlobalMagnitude
from ecoflap.prune.inputs import measure_dense
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner, Pruner
from ecoflap.prune.reap import REAP
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.upop import UPop
from ecoflap.prune.wanda import Wanda
from ecoflap.run.steps.memory import memory_needs, weights_in_use
from ecoflap.run.steps.memory_table import what_helps
from ecoflap.run.steps.sample_cost import SampleCost, sample_cost
from ecoflap.run.steps.workload import Need, Workload
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.local import Local
from ecoflap.score.pass_size import LiveBytes
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny

pytestmark = pytest.mark.long

SAMPLES, BATCH = 12, 4


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    """Wide enough that what every process needs beside is small."""
    return llama(128, 4)


def alive(work: Callable[[], object]) -> int:
    with LiveBytes() as live:
        work()
    return live.peak


@pytest.mark.parametrize(
    "pruner",
    [
        Magnitude(),
        Wanda(),
        SparseGPT(),
        ADMM(),
        Wanda(refine="swaps"),
        Wanda(refine="swaps", repair=True),
        Wanda(refine="swaps", mask="8:16"),
    ],
    ids=["magnitude", "wanda", "sparsegpt", "admm", "swaps", "repaired", "groups"],
)
def test_pruning(model: PrunableModel, pruner: Wanda) -> None:
    calibration = tokens(SAMPLES, 64, 256)
    (need,) = memory_needs(model, sample_cost(model, calibration), Workload(pruner, SAMPLES, BATCH))
    allocation = WaterFilling()(model, None, 0.5)
    taken = alive(lambda: prune(model, calibration, pruner, allocation, BATCH))
    taken -= sum(
        layer.weight.nbytes for block in model.blocks[:-1] for layer in block.layers
    )  # new weights in the place of old ones, by the last block
    assert taken / 2 < need.total - need.weights < 2 * taken


@pytest.mark.parametrize("shorter", [0, 7], ids=["alike", "unlike"])
def test_the_inputs_of_all_blocks_are_recorded_at_first(shorter: int) -> None:
    """Which is most of what a deep model takes, if few samples wait."""
    samples = tokens(4, 128, 256).samples
    rows = tuple({"input_ids": one["input_ids"][: 128 - shorter * (i % 2)]} for i, one in enumerate(samples))
    model, calibration = llama(64, 24), CalibrationSet("rows", rows)
    (need,) = memory_needs(model, sample_cost(model, calibration), Workload(Wanda(), 4, 2))
    taken = alive(lambda: measure_dense(model, calibration, 2))
    assert taken / 1.1 < need.total - need.weights < 1.3 * taken


def test_without_data_nothing_waits_and_nothing_runs(model: PrunableModel) -> None:
    cost = sample_cost(model, tokens(SAMPLES, 64, 256))
    for pruner in (Magnitude(), GlobalMagnitude()):
        (need,) = memory_needs(model, cost, Workload(pruner, SAMPLES, BATCH))
        assert (need.states, need.work) == (0, 4 * 4 * max(layer.size for layer in model.layers))


def mixture(vocabulary: int = 256) -> PrunableModel:
    """A Mixtral of many experts, whose statistics are most of what pruning it takes."""
    if int(hf.__version__.split(".")[0]) < SHARED_SINCE:
        pytest.skip("each expert is a module of its own")
    torch.manual_seed(0)
    size = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = hf.MixtralConfig(vocab_size=vocabulary, num_hidden_layers=2, num_local_experts=32, **size)
    return prunable("mixtral", hf.MixtralForCausalLM(config), None, language_loss, Selection())


@pytest.mark.parametrize("pruner", [SparseGPT(), ADMM()], ids=["sparsegpt", "admm"])
def test_pruning_experts(pruner: LayerPruner) -> None:
    model, calibration = mixture(), tokens(SAMPLES, 64, 256)
    (need,) = memory_needs(model, sample_cost(model, calibration), Workload(pruner, SAMPLES, BATCH))
    allocation = WaterFilling()(model, None, 0.5)
    taken = alive(lambda: prune(model, calibration, pruner, allocation, BATCH))
    taken -= sum(layer.weight.nbytes for layer in model.layers)  # written in place
    assert taken / 1.3 < need.total - need.weights < 2 * taken, "the factor of one expert's input at a time"


def test_what_shows_how_blocks_are_called_runs_the_head() -> None:
    model, calibration, pruner = mixture(8000), tokens(2, 64, 8000), REAP(batch_size=2)
    (need,) = memory_needs(model, sample_cost(model, calibration), Workload(pruner, 2, BATCH))
    taken = alive(lambda: score_experts(model, find_mixtures(model), calibration, 2))
    assert taken / 1.3 < need.total - need.weights < 2 * taken


def test_the_experts_that_stay_are_copied_one_parameter_at_a_time() -> None:
    calibration, pruner = tokens(2, 16, 256), REAP(batch_size=2)
    with LiveBytes() as live:
        model = mixture()
        (need,) = memory_needs(model, sample_cost(model, calibration), Workload(pruner, 2, BATCH))
        before = live.peak = live.alive
        pruner.prune(model, calibration, 0.0)
    assert live.peak - before < need.total - need.weights < 1.3 * (live.peak - before)


@pytest.mark.parametrize("pruner", [SparseGPT(), ADMM()], ids=["sparsegpt", "admm"])
@pytest.mark.parametrize(
    "allocator",
    [
        InContext(samples=4, batch_size=4, steps=1, ramp_steps=1),
        EvoPress(generations=1, offspring=2, survivors=[1], samples=[4], fitness="loss"),
    ],
    ids=["in_context", "evopress"],
)
@pytest.mark.every_run("evopress-sparsegpt")
def test_allocating_among_experts(allocator: Allocator, pruner: LayerPruner) -> None:
    model, calibration = mixture(), tokens(SAMPLES, 64, 256)
    cost = sample_cost(model, calibration)
    need, _ = memory_needs(model, cost, Workload(pruner, SAMPLES, BATCH, allocating=allocator.footprint))
    taken = alive(lambda: allocator(model, None, 0.6, Context(pruner, calibration, BATCH, 0)))
    taken -= sum(layer.weight.nbytes for layer in model.layers)  # written in place
    assert taken / 1.3 < need.total - need.weights < 2 * taken, "a factor of each input stays"


def test_the_predictions_that_a_search_compares_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("ecoflap.models.core.losses", "ecoflap.ops.divergence"):
        monkeypatch.setattr(f"{place}.AT_ONCE", 2**16)  # few beside the logits, as in large models
    model, calibration = llama(128, 2, 8000), tokens(SAMPLES, 64, 8000)
    allocator = EvoPress(generations=1, offspring=2, survivors=[1], samples=[SAMPLES])
    cost = sample_cost(model, calibration)
    need, _ = memory_needs(model, cost, Workload(Wanda(), SAMPLES, 2, allocating=allocator.footprint))
    taken = alive(lambda: allocator(model, None, 0.6, Context(Wanda(), calibration, 2, 0)))
    taken -= sum(layer.weight.nbytes for layer in model.layers)  # written in place
    assert taken / 1.3 < need.total - need.weights < 1.5 * taken


def test_what_shows_that_inputs_can_be_seen_runs_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecoflap.models.core.losses.AT_ONCE", 2**16)
    model, calibration, scorer = llama(64, 2, 8000), tokens(2, 128, 8000), Local(batch_size=2)
    need, _ = memory_needs(model, sample_cost(model, calibration), Workload(Wanda(), 2, 2, scorer))
    taken = alive(lambda: scorer(model, calibration, 0))
    assert taken / 1.3 < need.total - need.weights < 1.5 * taken


@pytest.mark.parametrize("size", [BATCH, SAMPLES])
def test_pruning_beside_the_dense_model(model: PrunableModel, size: int) -> None:
    calibration, pruner = tokens(SAMPLES, 64, 256), ADMM()
    cost = sample_cost(model, calibration)
    (need,) = memory_needs(model, cost, Workload(pruner, SAMPLES, size, propagate="compensated"))
    (alone,) = memory_needs(model, cost, Workload(pruner, SAMPLES, size, propagate="layer"))
    assert need.states == 2 * alone.states
    allocation = WaterFilling()(model, None, 0.5)
    taken = alive(lambda: prune(model, calibration, pruner, allocation, size, propagate="compensated"))
    taken -= sum(layer.weight.nbytes for block in model.blocks[:-1] for layer in block.layers)
    assert taken / 2 < need.total - need.weights < 2 * taken


@pytest.mark.parametrize(
    "scorer",
    [
        FirstOrder(batch_size=4),
        ZerothOrder(batch_size=4, samples_per_pass=1),
        ZerothOrder(batch_size=4, probe="derivative"),
        Local(batch_size=4),
    ],
    ids=["first", "zeroth", "derivative", "local"],
)
def test_scoring(model: PrunableModel, scorer: FirstOrder) -> None:
    calibration = tokens(SAMPLES, 64, 256)
    need, _ = memory_needs(model, sample_cost(model, calibration), Workload(Wanda(), SAMPLES, BATCH, scorer))
    taken = alive(lambda: scorer(model, calibration, 0))
    assert taken / 2 < need.total - need.weights < 2 * taken


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT(), ADMM()], ids=["wanda", "sparsegpt", "admm"])
@pytest.mark.parametrize(
    "allocator",
    [
        InContext(samples=4, batch_size=4, steps=1, ramp_steps=1),
        EvoPress(generations=1, offspring=2, survivors=[1], samples=[4], fitness="loss"),
        OWL(spread="auto", samples=4),
    ],
    ids=["in_context", "evopress", "auto"],
)
@pytest.mark.every_run("in_context-admm", "auto-wanda", "evopress-wanda")
def test_allocating_in_trials(model: PrunableModel, allocator: Allocator, pruner: LayerPruner) -> None:
    calibration = tokens(SAMPLES, 64, 256)
    cost = sample_cost(model, calibration)
    need, _ = memory_needs(model, cost, Workload(pruner, SAMPLES, BATCH, allocating=allocator.footprint))
    context = Context(pruner, calibration, BATCH, 0)
    taken = alive(lambda: allocator(model, None, 0.6, context))
    assert taken / 2 < need.total - need.weights < 2 * taken


def test_statistics_of_trials_are_on_the_cpu_with_an_offloaded_model(model: PrunableModel) -> None:
    cost = sample_cost(model, tokens(SAMPLES, 64, 256))
    placement = Placement()
    placement.kind, placement.device = "cpu", torch.device("cuda")
    offloaded = replace(model, placement=placement)
    work = Workload(SparseGPT(), SAMPLES, BATCH, allocating=InContext().footprint)
    whole, part = (memory_needs(one, cost, work)[0] for one in (model, offloaded))
    squares = sum(layer.shape[1] ** 2 for block in model.blocks[1:] for layer in block.layers)
    assert whole.work - part.work >= 4 * squares


def test_the_allocators_own_batch_size_counts(model: PrunableModel) -> None:
    calibration = tokens(SAMPLES, 64, 256)
    cost = sample_cost(model, calibration)
    works = (Workload(Wanda(), SAMPLES, allocating=InContext(batch_size=size).footprint) for size in (1, 8))
    small, large = (memory_needs(model, cost, work)[0] for work in works)
    assert small.work < large.work
    assert "allocation.batch_size" in what_helps(large, "none")


def test_gradients_of_one_batch_and_of_one_step_at_a_time(model: PrunableModel) -> None:
    calibration = tokens(SAMPLES, 64, 256)
    pruner = GlobalGradient(iterations=3, batch_size=BATCH)
    (need,) = memory_needs(model, sample_cost(model, calibration), Workload(pruner, SAMPLES, BATCH))
    dense = sum(layer.weight.nbytes for layer in model.layers)
    taken = alive(lambda: pruner.prune(model, calibration, 0.0)) - dense  # in the place of old weights
    assert taken / 1.4 < need.total - need.weights < 2 * taken


@pytest.mark.parametrize("pruner", [REAP, GlobalGradient, UPop])
def test_the_plan_uses_the_pruners_own_batch_size(model: PrunableModel, pruner: type[Pruner]) -> None:
    calibration = tokens(SAMPLES, 64, 256)
    cost = sample_cost(model, calibration, stores=True)
    small, large = (
        memory_needs(model, cost, Workload(pruner(batch_size=size), SAMPLES, BATCH))[0]  # type: ignore[call-arg]
        for size in (1, 8)
    )
    assert small.work < large.work
    assert large.batch_size == "pruner.batch_size"


@pytest.mark.parametrize("probe", ["layer", "derivative"])
def test_half_precision_is_scored_in_fp32(probe: str) -> None:
    scorer = ZerothOrder(batch_size=4, samples_per_pass=1, probe=probe)
    whole, half, calibration = llama(128, 4), llama(128, 4), tokens(SAMPLES, 64, 256)
    half.module.bfloat16()
    needs = [
        memory_needs(model, sample_cost(model, calibration), Workload(Wanda(), SAMPLES, BATCH, scorer))
        for model in (whole, half)
    ]
    assert needs[1][0].weights == needs[0][0].weights == 2 * needs[1][1].weights
    assert needs[1][0].work == pytest.approx(needs[0][0].work, rel=0.1)
    assert "score=first_order" in what_helps(Need("score", 3, 2, 1, wide=True), "none")


@pytest.mark.parametrize("half", [False, True])
def test_what_waits_on_the_cpu_counts_where_that_is_the_device(half: bool) -> None:
    model, cost = llama(16, 4), SampleCost(100, 400, 10, 10)
    if half:
        model.module.bfloat16()
    on_cpu, on_accelerator = (
        replace(model, placement=Planned("cpu", torch.device(device))) for device in ("cpu", "cuda")
    )
    assert weights_in_use(on_cpu) == weights_in_use(model) > weights_in_use(on_accelerator)
    blocks = [sum(one.numel() for one in block.module.parameters()) for block in model.blocks]
    loaded = sum(2 * one for one in blocks) + 2 * 4 * max(blocks) if half else sum(4 * one for one in blocks)
    outside = 4 * (sum(one.numel() for one in model.module.parameters()) - sum(blocks))
    assert weights_in_use(on_cpu, width=4) == outside + loaded, "blocks are converted to fp32 where they run"
    (whole,), (kept,), (waiting,) = (
        memory_needs(one, cost, Workload(Wanda(), SAMPLES, BATCH)) for one in (model, on_cpu, on_accelerator)
    )
    assert kept == whole
    assert (waiting.states, waiting.offloaded) == (BATCH * 100, SAMPLES * 100)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_is_counted(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    cost = sample_cost(model, calibration)
    assert min(cost.states, cost.outputs) > 0
    assert 0 < cost.block <= cost.forward
    assert weights_in_use(model) == sum(parameter.nbytes for parameter in model.module.parameters())
    whole, by_layer = (
        memory_needs(model, cost, Workload(one, 5, 2)) for one in (GlobalMagnitude(), Magnitude())
    )
    assert whole == by_layer, "neither has a backward pass, or copies of all layers"
    assert whole[0].work > 0


@pytest.mark.parametrize(("pruner", "of_batch"), [(Wanda, False), (GlobalGradient, True)])
def test_hidden_states_of_a_batch_and_of_all_samples_are_told_apart(
    model: PrunableModel, pruner: type[Pruner], of_batch: bool
) -> None:
    cost = sample_cost(model, tokens(SAMPLES, 64, 256))
    assert memory_needs(model, cost, Workload(pruner(), SAMPLES, BATCH))[0].of_batch == of_batch


def test_running_out_of_memory_is_an_error_for_people() -> None:
    costs: dict[str, dict[str, object]] = {}
    with (
        pytest.raises(UserError, match=r"memory ran out in step prune \(no room\); use a smaller batch_size"),
        measure(costs, "prune"),
    ):
        raise torch.OutOfMemoryError("no room\nand much more")
    assert costs["prune"]["seconds"] >= 0  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="another"), measure(costs, "prune"):
        raise RuntimeError("another")
