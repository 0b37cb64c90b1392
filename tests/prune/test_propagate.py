"""``propagate=dense``: every layer is pruned by what it reads in the dense model."""

from __future__ import annotations

import pytest
import torch

from ecoflap.blocks.input_statistics import InputsComplete, InputStatistics
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.prune.driver import prune
from ecoflap.prune.inputs import measure_dense
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny

from . import reference
from .test_families import uniform


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "t5", "blip2_t5", "blip2_opt", "clip"])
def test_masks_are_those_of_the_dense_model(family: str) -> None:
    model, calibration = tiny.build(family), tiny.samples(family)
    allocation = uniform(model)
    one_by_one = tiny.one_by_one(family, calibration, 2)
    expected = {}
    with quiet_forward(model.module):
        for layer in model.layers:
            inputs = reference.inputs_of(model, layer, calibration, one_by_one)
            _, expected[layer.name] = reference.wanda(
                layer.matrix().clone(), inputs, allocation.keep[layer.name]
            )
    report = prune(model, calibration, Wanda(), allocation, 2, propagate="dense")
    assert list(report.masks) == [layer.name for layer in model.layers]
    for layer in model.layers:
        assert torch.equal(layer.oriented(report.masks[layer.name]), expected[layer.name]), layer.name


@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT()])
def test_it_is_another_result_and_one_pass(pruner: Wanda | SparseGPT) -> None:
    weights, runs = {}, {}
    for propagate in ("pruned", "dense"):
        model, calibration = tiny.build("llama"), tiny.samples("llama")
        ran: list[int] = []
        model.blocks[1].layers[0].module.register_forward_pre_hook(
            lambda _, arguments, ran=ran: ran.append(len(arguments[0]))
        )
        prune(model, calibration, pruner, uniform(model), 2, propagate=propagate)
        weights[propagate], runs[propagate] = model.layers[-1].weight.detach().clone(), sum(ran)
    assert not torch.equal(weights["pruned"], weights["dense"])
    small = 4 * 2  # show how blocks are called for both lengths, and whether those do the same alone
    assert runs == {"pruned": small + 2 * 5, "dense": small + 5}


@torch.no_grad()
def test_a_block_is_run_no_further_than_its_last_layer_reads() -> None:
    model, calibration = tiny.build("llama"), tiny.samples("llama")
    block, statistics, finished = model.blocks[0], InputStatistics(MeanSquare), []
    block.layers[-1].module.register_forward_hook(lambda *_: finished.append(True))
    with statistics.gathering(block.layers, stop=True):
        for batch in calibration.batches(1):
            statistics.begin_run((), [])
            try:
                model.loss(batch)
            except InputsComplete:
                continue
    assert len(finished) == 1, "the first run shows that no layer is called twice"
    assert statistics[block.layers[-1]].tokens == statistics[block.layers[0]].tokens == 29


@pytest.mark.parametrize("family", ["llama", "gpt2", "blip2_t5", "clip", "torchvision_vit"])
def test_what_was_measured_of_the_dense_model_prunes_like_measuring_on_the_way(family: str) -> None:
    together, apart = tiny.build(family), tiny.build(family)
    calibration = tiny.samples(family)
    given = measure_dense(apart, calibration, 2)
    assert set(given) == {layer.name for layer in apart.layers}
    prune(together, calibration, Wanda(), uniform(together), 2, propagate="dense")
    report = prune(apart, calibration, Wanda(), uniform(apart), 2, propagate="dense", recall=lambda _: given)
    for one, other in zip(together.layers, apart.layers, strict=True):
        assert torch.equal(one.weight, other.weight), one.name
    assert all(error is not None for error in report.errors.values())
