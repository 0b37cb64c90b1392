"""Several processes prune as one does, each with its share of the samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ecoflap
from benchmarks import models
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.gram import Gram
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.blocks.walk import walk
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.processes import rank
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune import layers as solving
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.inputs import measure_dense, require_propagation
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.pieces import Piece, exchanged
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.ria import RIA
from ecoflap.prune.row_shards import RowShards
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import experts, tiny
from tests.prune.by_hand_tokens import samples as token_samples
from tests.prune.test_families import uneven

from .together import together

pytestmark = pytest.mark.long

# Towers of one kind and of several, two sequences, contrastive losses.
CHOSEN = [name for name in ("llama", "t5", "clip", "blip_vqa", "llava") if name in tiny.FAMILIES]
WAYS: dict[str, tuple[LayerPruner, str]] = {
    "wanda": (Wanda(), "pruned"),
    "wanda by dense inputs": (Wanda(), "dense"),
    "wanda by layer": (Wanda(), "layer"),
    "sparsegpt": (SparseGPT(), "pruned"),
    "sparsegpt by layer": (SparseGPT(), "layer"),
    "admm": (ADMM(), "pruned"),
    "admm by layer": (ADMM(), "layer"),
    "admm compensated": (ADMM(), "compensated"),
    "wanda refined by swaps": (Wanda(refine="swaps"), "pruned"),
    "magnitude": (Magnitude(), "pruned"),
}


def pruned(family: str, way: str, batch_size: int = 2, finished: FinishedBlocks | None = None) -> Any:
    """{layer: weight}, {layer: mask}, {layer: error} and {layer: tokens} of a pruned model."""
    pruner, propagate = WAYS[way]
    model, samples = model_and_samples(family)
    report = prune(model, samples, pruner, uneven(model), batch_size, propagate=propagate, finished=finished)
    weights = {layer.name: layer.weight.detach().clone() for layer in model.layers}
    return weights, dict(report.masks), report.errors, report.tokens


def model_and_samples(family: str) -> tuple[PrunableModel, Any]:
    if family == "mixtral":
        return experts.build(family), experts.samples(5, 7, 5, 6)
    return tiny.build(family), tiny.samples(family)


def assert_same(found: Any, expected: Any) -> None:
    """The same masks but where metrics tie to rounding, and the same weights and errors up to rounding.

    Statistics are the same to the last bit where no batch is cut; but a solve of some of the layers or rows
    of a tiny block multiplies matrices of other shapes.
    """
    (weights, masks, errors, tokens), (exact, wanted, relative, counts) = found, expected
    total = sum(mask.numel() for mask in wanted.values())
    different = {name: masks[name] != mask for name, mask in wanted.items()}
    flipped = sum(int(one.sum()) for one in different.values())
    assert flipped <= 1e-3 * total, f"{flipped} of {total} weights differ"
    for name, mask in different.items():
        if not mask.any():  # in other layers, all that follows depends on the flipped ones
            torch.testing.assert_close(weights[name], exact[name], rtol=1e-3, atol=1e-4, msg=name)
    if not flipped:
        assert {name: one or 0.0 for name, one in errors.items()} == pytest.approx(
            {name: one or 0.0 for name, one in relative.items()}, rel=1e-3, abs=1e-5
        )
    assert tokens == counts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", CHOSEN)
@pytest.mark.every_run(
    "llama-*", "llava-wanda", "llava-sparsegpt by layer", "t5-wanda", "blip_vqa-admm compensated"
)
def test_two_processes_prune_as_one(family: str, way: str) -> None:
    if family == "llava" and way == "wanda by dense inputs":
        pytest.skip("the text tower reads the vision tower")
    expected = pruned(family, way)
    found = together(2, lambda: pruned(family, way))
    assert_same(found[0], expected)
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one), "bit for bit in all processes"


@pytest.mark.parametrize("way", ["wanda", "wanda by layer"])
def test_masks_of_wanda_are_those_of_one_process_bit_for_bit(way: str) -> None:
    expected = pruned("llama", way)
    for found in together(3, lambda: pruned("llama", way)):
        assert all(torch.equal(found[1][name], mask) for name, mask in expected[1].items())
        assert all(torch.equal(found[0][name], weight) for name, weight in expected[0].items())


@pytest.mark.parametrize("way", ["sparsegpt", "admm compensated", "wanda by layer"])
def test_four_processes_share_one_batch(way: str) -> None:
    """The batch holds all five samples, so that all but one process have a single one."""
    found = together(4, lambda: pruned("llama", way, batch_size=5))
    assert_same(found[3], pruned("llama", way, batch_size=5))


@pytest.mark.parametrize("way", ["wanda", "sparsegpt by layer", "admm"])
def test_experts_that_only_some_processes_reach(way: str) -> None:
    expected, found = pruned("mixtral", way), together(4, lambda: pruned("mixtral", way))
    assert_same(found[0], expected)


@pytest.mark.parametrize("propagate", ["layer", "compensated"])
def test_a_batch_of_more_samples_than_processes_is_enough(propagate: str) -> None:
    samples = tiny.samples("llama")
    together(3, lambda: require_propagation(tiny.build("llama"), samples.batches(8), propagate, Gram))


@pytest.mark.parametrize("choice", ["atv", "text", "answer"])
@pytest.mark.every_run("answer")
def test_tokens_are_chosen_among_those_of_all_processes(choice: str) -> None:
    """The last samples have no pictures, so that a process may see none."""
    with_pictures = token_samples("llava").samples
    bare = [
        {name: one[name] for name in one if name != "pixel_values"}
        | dict.fromkeys(("input_ids", "labels"), torch.arange(3, 12).view_as(one["input_ids"]))
        for one in tiny.samples("llava", lengths=(5, 5, 5)).samples
    ]
    for calibration in (token_samples("llava"), CalibrationSet("mixed", (*with_pictures, *bare))):

        def measured(calibration: CalibrationSet = calibration) -> dict[str, Tensor]:
            return measure_dense(tiny.build("llava"), calibration, 1, tokens=choice)

        expected = measured()
        for count in (2, 3):
            for found in together(count, measured):
                assert found.keys() == expected.keys()
                for name, sums in found.items():
                    torch.testing.assert_close(sums, expected[name], rtol=1e-6, atol=1e-9)


WIDE: dict[str, tuple[LayerPruner, str]] = {
    "sparsegpt": (SparseGPT(), "pruned"),
    "sparsegpt by layer": (SparseGPT(), "layer"),
    "admm": (ADMM(), "layer"),
    "admm matrix": (ADMM(mask="matrix"), "pruned"),
    "admm 2:4": (ADMM(mask="2:4"), "layer"),
    "admm compensated": (ADMM(), "compensated"),
    "swaps": (Wanda(refine="swaps", repair=True), "layer"),
    "ria": (RIA(refine="swaps"), "layer"),
}


@pytest.mark.parametrize("way", WIDE)
@pytest.mark.every_run("admm 2:4", "swaps", "ria", "sparsegpt by layer")
def test_rows_of_one_layer_in_several_processes(way: str) -> None:
    """Of a model wide enough, with the same samples in all processes; weights are the same bit for bit."""
    (pruner, propagate), rows = WIDE[way], []

    def work() -> Any:
        model = models.llama(32, 2)
        samples = models.tokens(4, 16, 256)
        allocation = WaterFilling()(model, None, 0.5)
        if pruner.rule.name == "matrix" and pruner.weighs_rows:
            factors = {layer.name: (1 + torch.arange(layer.shape[0]) % 7).tolist() for layer in model.layers}
            allocation = replace(allocation, row_weights=factors)
        report = prune(model, samples, pruner, allocation, 1, propagate=propagate)
        weights = {layer.name: layer.weight.detach().clone() for layer in model.layers}
        return (weights, dict(report.masks), report.errors, report.tokens), list(rows)

    solve = solving.solve_layers

    def noting(layers: Any, dense: Any, *rest: Any) -> Any:
        rows.extend(
            (layer.name, len(weight), len(layer.matrix()))
            for layer, weight in zip(layers, dense, strict=True)
        )
        return solve(layers, dense, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solving, "solve_layers", noting)
        (expected, _), found = work(), together(2, work)
    (first, solved), (second, others) = found
    assert_same(first, expected)
    for one, other in zip(first[:2], second[:2], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one), "bit for bit in all processes"
    parts = [one for one in (*solved, *others) if one[1] < one[2]]
    assert bool(parts) == pruner.solves_rows, "some layers have rows in both"


def test_rows_add_up_to_their_layer() -> None:
    """Its error, and the weights that pruning made zero although the mask keeps them."""

    def work() -> tuple[Tensor, Tensor, Any, int]:
        layer, number = Layer("one.weight", nn.Linear(4, 6)), rank()
        shards = RowShards.even(6)
        layer.write(torch.full((6, 4), float(number)))
        piece = Piece(torch.full((3, 4), number == 0), (1.0 + number, 0.5), None, 2 + number)
        ((_, whole),) = exchanged({layer: shards}, {layer: piece})
        return layer.matrix().detach(), whole.mask, whole.energies, whole.zeroed

    for weight, mask, energies, zeroed in together(2, work):
        assert weight.tolist() == [[0.0] * 4] * 3 + [[1.0] * 4] * 3
        assert mask.tolist() == [[True] * 4] * 3 + [[False] * 4] * 3
        assert (energies, zeroed) == ((3.0, 1.0), 5)


def statistics(family: str, kind: type[Statistic]) -> dict[str, tuple[Tensor, int]]:
    """{layer: the value of its statistic and the number of its tokens}."""
    model, samples = model_and_samples(family)
    found: dict[str, tuple[Tensor, int]] = {}
    with torch.no_grad():
        for visit in walk(model, model.towers, samples.batches(2), "test"):
            measured = visit.measure(kind, leave=True)
            if measured is not None:
                found |= {
                    layer.name: (measured[layer].value, measured[layer].tokens)  # type: ignore[attr-defined]
                    for layer in visit.block.layers
                }
    return found


@pytest.mark.parametrize("kind", [MeanSquare, Gram])
@pytest.mark.parametrize("family", [*CHOSEN, "mixtral"])
@pytest.mark.every_run("llava-Gram", "llama-MeanSquare", "mixtral-Gram", "t5-MeanSquare")
def test_statistics_are_of_all_samples(family: str, kind: type[Statistic]) -> None:
    expected = statistics(family, kind)
    for found in together(3, lambda: statistics(family, kind)):
        assert found.keys() == expected.keys()
        for name, (value, tokens) in expected.items():
            assert found[name][1] == tokens
            assert torch.equal(found[name][0], value), "to the last bit, as no batch is cut"


def test_each_process_runs_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that each process counts are a part of all, and each layer is solved by one process."""

    def work() -> tuple[int, list[str]]:
        tokens, solved = [], []
        combine, solve = InputStatistics.combine, solving.solve_layers

        def counting(self: InputStatistics, layers: Any) -> None:
            tokens.append(self.of[layers[0]].tokens)
            combine(self, layers)

        def noting(layers: Any, *rest: Any) -> Any:
            solved.extend(layer.name for layer in layers)
            return solve(layers, *rest)

        monkeypatch.setattr(InputStatistics, "combine", counting)
        monkeypatch.setattr(solving, "solve_layers", noting)
        pruned("llama", "sparsegpt")
        return tokens[0], solved

    (own, solved), (others, other_solved) = together(2, work)
    model, samples = model_and_samples("llama")
    assert own + others == sum(len(one["input_ids"]) for one in samples.samples)
    assert min(own, others) > 0.3 * (own + others)
    assert sorted([*solved, *other_solved]) == sorted(layer.name for layer in model.layers)
    assert solved
    assert other_solved


@pytest.mark.parametrize("way", ["sparsegpt", "admm compensated"])
def test_resumed_by_another_number_of_processes(way: str, tmp_path: Path) -> None:
    """The blocks that two processes have stored are those that three and one go on from."""
    whole = together(2, lambda: pruned("llama", way, finished=FinishedBlocks(tmp_path, "key")))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 2, "the first process alone has written"
    first = hashlib.blake2b(files[0].read_bytes()).hexdigest()
    files[1].unlink()
    for count in (3, 1):
        found = together(count, lambda: pruned("llama", way, finished=FinishedBlocks(tmp_path, "key")))
        assert_same(found[0], whole[0])
        files[1].unlink()
    assert hashlib.blake2b(files[0].read_bytes()).hexdigest() == first


def test_a_block_that_one_process_lacks_is_pruned_again(tmp_path: Path) -> None:
    def work() -> Any:
        folder = tmp_path if rank() == 0 else tmp_path / "another disk"
        return pruned("llama", "sparsegpt", finished=FinishedBlocks(folder, "key"))

    expected = together(2, work)
    again = together(2, work)
    assert_same(again[1], expected[0])


def test_from_python() -> None:
    """``ecoflap.prune`` in processes that have joined each other."""

    def work() -> Any:
        model = tiny.build("llama")
        data = tiny.samples("llama")
        ecoflap.prune(model, data=data, sparsity=0.5, pruner="sparsegpt", batch_size=2)
        return {layer.name: layer.weight.detach().clone() for layer in model.layers}

    expected, found = work(), together(2, work)
    for name, weight in expected.items():
        torch.testing.assert_close(found[0][name], weight, rtol=1e-3, atol=1e-4)
        assert torch.equal(found[0][name], found[1][name])


STEPS: dict[str, Callable[[PrunableModel, CalibrationSet], Any]] = {
    "score": ecoflap.score,
    "allocate": lambda model, data: ecoflap.allocate(model, sparsity=0.5, data=data),
    "prune": lambda model, data: ecoflap.prune(model, data=data, sparsity=0.5, score="none"),
}


@pytest.mark.parametrize("differ", ["models", "calibration samples"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_processes_with_different_models_or_samples_are_refused(
    differ: str, step: Callable[[PrunableModel, CalibrationSet], Any]
) -> None:
    """Their sums would be of no model, or leave samples out."""

    def work() -> None:
        model, data = tiny.build("llama"), tiny.samples("llama")
        if rank() == 1 and differ == "models":
            model.layers[0].matrix()[0, 0] += 1
        if rank() == 1 and differ == "calibration samples":
            data = replace(data, samples=data.samples[1:])
        with pytest.raises(UserError, match=f"have different {differ}"):
            step(model, data)

    together(2, work)
