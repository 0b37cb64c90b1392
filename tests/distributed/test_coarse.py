"""Scores and allocations of several processes are those of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ecoflap.allocate.dlp import DLP
from ecoflap.allocate.evopress import EvoPress
from ecoflap.allocate.in_context import InContext
from ecoflap.allocate.neuronal import Neuronal
from ecoflap.allocate.owl import OWL
from ecoflap.allocate.protocol import Context
from ecoflap.allocate.tamp import TAMP
from ecoflap.allocate.trial import Group, TrialPruner, trial_pruner
from ecoflap.blocks.gram import Gram
from ecoflap.prune.admm import ADMM
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.score import first_order
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.local import Local
from ecoflap.score.protocol import Scorer
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny
from tests.allocate.test_evopress import SMALL

from .together import together

pytestmark = pytest.mark.long

CHOSEN = [name for name in ("llama", "t5", "clip", "blip_vqa") if name in tiny.FAMILIES]
SCORERS: dict[str, Scorer] = {
    "zeroth order": ZerothOrder(samples=5, batch_size=2, noises=2),
    "by block": ZerothOrder(samples=5, batch_size=2, probe="block"),
    "by derivative": ZerothOrder(samples=5, batch_size=2, probe="derivative"),
    "first order": FirstOrder(samples=5, batch_size=2),
}


def scored(family: str, scorer: Scorer) -> Any:
    return scorer(tiny.build(family), tiny.samples(family), seed=0).to_json()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("family", CHOSEN)
@pytest.mark.every_run("llama-*-2", "clip-by block-2", "t5-zeroth order-4", "blip_vqa-first order-4")
def test_scores_are_those_of_one_process(family: str, name: str, count: int) -> None:
    """To the last bit: the batches are the same. Of four processes, one has no batch."""
    expected = scored(family, SCORERS[name])
    assert together(count, lambda: scored(family, SCORERS[name])) == [expected] * count


def test_local_scores() -> None:
    expected = scored("llama", Local(samples=5, batch_size=2))
    for found in together(2, lambda: scored("llama", Local(samples=5, batch_size=2))):
        assert found["importance"] == pytest.approx(expected["importance"], rel=1e-5)


def test_each_process_runs_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int:
        calls: list[int] = []
        differentiate = first_order.differentiate

        def counting(*arguments: Any) -> None:
            calls.append(1)
            differentiate(*arguments)

        monkeypatch.setattr(first_order, "differentiate", counting)
        scored("llama", SCORERS["first order"])
        return len(calls)

    assert together(2, work) == [1, 2]


def recalled(name: Any, compute: Callable[[], Any]) -> Any:
    return compute()


IN_CONTEXT = InContext(samples=3, batch_size=1, steps=2, ramp_steps=1)
ALLOCATORS = {
    "in context": (InContext(samples=3, batch_size=1, steps=2, ramp_steps=1), "llama", Wanda()),
    "in context, contrastive": (
        InContext(samples=4, batch_size=2, steps=2, ramp_steps=1),
        "clip",
        SparseGPT(),
    ),
    "in context, by row": (replace(IN_CONTEXT, granularity="row"), "llama", Wanda()),
    "in context by row, ADMM": (replace(IN_CONTEXT, granularity="row"), "t5", ADMM()),
    "in context, ADMM": (InContext(samples=3, batch_size=1, steps=2, ramp_steps=1), "t5", ADMM()),
    "evopress by loss": (EvoPress(fitness="loss", **SMALL), "llama", Wanda()),
    "evopress by divergence": (EvoPress(fitness="kl", **SMALL), "llama", Wanda()),
    "owl": (OWL(), "llama", Wanda()),
    "dlp": (DLP(), "llama", Wanda()),
    "neuronal": (Neuronal(), "llama", Wanda()),
    "tamp": (TAMP(), "llava", Wanda()),
}


@pytest.mark.parametrize("pruner", [Wanda(), ADMM()])
def test_each_trial_solve_is_made_by_one_process(
    pruner: LayerPruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it takes a Gram matrix; the model ends with the same bits in all processes."""

    def work() -> Any:
        solved: list[str] = []
        solve = TrialPruner.solve

        def noting(self: TrialPruner, group: Group, keep: Any) -> Any:
            solved.extend(layer.name for layer in group.layers)
            return solve(self, group, keep)

        monkeypatch.setattr(TrialPruner, "solve", noting)
        model = tiny.build("llama")
        context = Context(pruner, tiny.samples("llama"), batch_size=2, seed=0, recall=recalled)
        with trial_pruner(model, context) as trial:
            trial.prune({layer.name: layer.size // 2 for layer in model.layers})
            return solved, {layer.name: layer.weight.detach().clone() for layer in model.layers}

    (_, expected), found = work(), together(3, work)
    names = sorted(expected)
    if pruner.statistic is Gram:
        assert sorted(name for solved, _ in found for name in solved) == names
        assert all(solved for solved, _ in found)
    else:
        assert all(sorted(solved) == names for solved, _ in found)
    for name, weight in expected.items():
        torch.testing.assert_close(found[0][1][name], weight, rtol=1e-3, atol=1e-4)
        assert all(torch.equal(weights[name], found[0][1][name]) for _, weights in found)


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.every_run("in context by row, ADMM", "evopress by loss", "owl")
def test_allocations_are_those_of_one_process(name: str) -> None:
    allocator, family, pruner = ALLOCATORS[name]
    if family not in tiny.FAMILIES:
        pytest.skip(f"no {family}")

    def allocated() -> Any:
        measured: list[Any] = []

        def recall(_: Any, compute: Callable[[], Any], dense: bool = False) -> Any:
            measured.append(compute())
            return measured[-1]

        context = Context(pruner, tiny.samples(family), batch_size=2, seed=0, recall=recall)
        return allocator(tiny.build(family), None, 0.5, context), measured

    (allocation, measured), others = allocated(), together(3, allocated)
    assert others[1] == others[0]
    assert others[2] == others[0]
    if name.startswith("in context"):  # from the same weights, one process has the same gradients
        squares = [one[0]["squares"] for one in (others[0][1], measured)]
        assert squares[0].keys() == squares[1].keys()
        assert bool(squares[0]) == (allocation.granularity != "row")
        for layer, of_rows in squares[0].items():
            assert of_rows == pytest.approx(squares[1][layer], rel=1e-2, abs=1e-3 * max(of_rows))
    expected, found = allocation.keep, others[0][0].keep
    sizes = tiny.build(family).sizes
    moved = sum(abs(found[layer] - count) for layer, count in expected.items())
    assert moved <= 0.01 * sum(sizes.values()), "counts round where sums differ in their last bits"
