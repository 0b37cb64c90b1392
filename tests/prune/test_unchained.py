"""Models whose blocks aren't a plain chain are pruned as if each layer's inputs came from a full forward pass
of the model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

import ecoflap
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.driver import prune
from ecoflap.prune.inputs import measure_dense
from ecoflap.prune.sparsegpt import SparseGPT
from tests import unchained
from tests.zoo import compare

from . import reference
from .test_families import PRUNERS, uneven, uniform


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", unchained.BUILDERS)
@pytest.mark.every_run("qwen3_omni-wanda", "gemma3n-*", "gemma4-*", "qwen3_vl-*", "llava_of_two_depths-*")
def test_equals_pruning_layer_by_layer_with_full_forward_passes(family: str, name: str) -> None:
    pruner, by_hand = PRUNERS[name]
    model, other, calibration = unchained.build(family), unchained.build(family), unchained.samples(family)
    allocation = uneven(model)
    report = prune(model, calibration, pruner, allocation, batch_size=2)
    with quiet_forward(other.module):
        masks = reference.prune(other, calibration, by_hand, allocation.keep)
    different = [
        layer.name
        for layer in model.layers
        if not torch.equal(layer.oriented(report.masks[layer.name]), masks[layer.name])
    ]
    if different and isinstance(pruner, SparseGPT):  # saliencies that tie, as a layer at a time shows
        found = compare.pruned(partial(unchained.build, family), calibration, pruner, allocate=uneven)
        assert found.wrong == []
        return
    assert not different
    for layer, expected in zip(model.layers, other.layers, strict=True):
        torch.testing.assert_close(layer.matrix(), expected.matrix(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", unchained.BUILDERS)
@pytest.mark.every_run("gemma4", "qwen3_vl", "llava_of_two_depths")
def test_dense_inputs_are_those_of_the_dense_model(family: str) -> None:
    model, calibration = unchained.build(family, dense="audio|merger|projector"), unchained.samples(family)
    allocation, expected = uniform(model), {}
    with quiet_forward(model.module):
        for layer in model.layers:
            inputs = reference.inputs_of(model, layer, calibration)
            _, expected[layer.name] = reference.wanda(
                layer.matrix().clone(), inputs, allocation.keep[layer.name]
            )
    report = prune(model, calibration, PRUNERS["wanda"][0], allocation, 2, propagate="dense")
    assert [
        layer.name
        for layer in model.layers
        if not torch.equal(layer.oriented(report.masks[layer.name]), expected[layer.name])
    ] == []


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_blocks_run_no_more_often_than_in_a_chain(propagate: str) -> None:
    """Two blocks get more than the output of the block before: they cost passes up to them, and those run no
    block.
    """
    family = "qwen3_vl"
    model, calibration, ran = (
        unchained.build(family, dense="visual"),
        unchained.samples(family, (5,) * 6),
        Counter[int](),
    )
    for index, block in enumerate(model.towers[0].blocks):
        # The last layer of a block: statistics are complete before it is run.
        block.module.mlp.down_proj.register_forward_hook(
            lambda _, arguments, __, index=index: ran.update({index: len(arguments[0])})
        )
    prune(model, calibration, PRUNERS["wanda"][0], uniform(model), 3, propagate=propagate)
    small, first = 3 * 2, 3  # what shows how layers and blocks are called; whether a layer is called twice
    once = len(calibration)
    assert set(ran.values()) == {small + (once if propagate == "dense" else first + once)}


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_texts_without_pictures_among_the_samples(name: str) -> None:
    """The largest batch reaches no vision tower, and adds nothing between blocks."""
    pruner, by_hand = PRUNERS[name]
    texts = [
        {
            name: tensor[:, 4:]
            for name, tensor in sample.items()
            if name in ("input_ids", "attention_mask", "labels")
        }
        for sample in unchained.samples("qwen3_vl", (6,) * 3, seed=2).samples
    ]
    calibration = CalibrationSet("mixed", (*texts, *unchained.samples("qwen3_vl").samples))
    model, other = (unchained.build("qwen3_vl", dense="merger") for _ in range(2))
    allocation = uneven(model)
    report = prune(model, calibration, pruner, allocation, batch_size=3)
    with quiet_forward(other.module):
        masks = reference.prune(other, calibration, by_hand, allocation.keep)
    assert [
        layer.name
        for layer in model.layers
        if not torch.equal(layer.oriented(report.masks[layer.name]), masks[layer.name])
    ] == []


def in_order(model: PrunableModel, *parts: str) -> PrunableModel:
    """The model with the towers whose paths these are parts of."""
    return replace(
        model, towers=tuple(tower for part in parts for tower in model.every_tower if part in tower.path)
    )


@torch.no_grad()
def test_dense_inputs_need_the_towers_in_the_order_of_the_data() -> None:
    """The last towers are pruned first; Qwen3-VL's language model reads what its mergers put out."""
    model, calibration = (
        in_order(unchained.build("qwen3_vl"), "blocks", "merger", "language_model"),
        unchained.samples("qwen3_vl"),
    )
    allocation, expected = uniform(model), {}
    with quiet_forward(model.module):
        for layer in model.layers:
            inputs = reference.inputs_of(model, layer, calibration)
            _, expected[layer.name] = reference.wanda(
                layer.matrix().clone(), inputs, allocation.keep[layer.name]
            )
    report = prune(model, calibration, PRUNERS["wanda"][0], allocation, 2, propagate="dense")
    assert [
        layer.name
        for layer in model.layers
        if not torch.equal(layer.oriented(report.masks[layer.name]), expected[layer.name])
    ] == []
    model = in_order(unchained.build("qwen3_vl"), "blocks", "language_model", "merger")
    with pytest.raises(
        UserError,
        match=(
            r"propagate=dense prunes tower .*merger_list.* before language .*, which reads what it puts out"
        ),
    ):
        prune(model, calibration, PRUNERS["sparsegpt"][0], allocation, 2, propagate="dense")


def test_the_default_method_in_python_needs_no_order_of_the_towers() -> None:
    """As from the command line, all statistics of the dense model are gathered before a weight changes."""
    towers = ("blocks", "language_model", "merger")
    model, other = (in_order(unchained.build("qwen3_vl"), *towers) for _ in range(2))
    calibration, allocation = unchained.samples("qwen3_vl"), uniform(model)
    found = ecoflap.prune(model, data=calibration, allocation=allocation, propagate="dense").report
    statistics = measure_dense(other, calibration, 16)
    expected = prune(
        other,
        calibration,
        PRUNERS["wanda"][0],
        allocation,
        16,
        propagate="dense",
        recall=lambda _: statistics,
    )
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in found.masks.items())
