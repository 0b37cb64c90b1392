"""Blocks that hand each other more than hidden states are pruned as full forward passes would have it, or
refused.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks.capture import Flow
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from ecoflap.prune.driver import prune
from ecoflap.prune.inputs import measure_dense, require_capture
from ecoflap.prune.magnitude import Magnitude
from tests import handing, hybrids, tiny

from . import reference
from .test_families import PRUNERS, uneven

ALONE = r"blocks\.3 puts out something else when it is run alone .*; leave tower language out of towers, or "
OUTSIDE = (
    r"calls blocks\.1\.first\.weight and 2 more layers outside their own blocks.* add"
    r" skip_layers=\[blocks\.1\.first,"
)
ORDER = (
    r"propagate=dense prunes the last blocks of tower language \(blocks\) first, and the model runs some of"
    r" them before earlier"
)
AGAIN = {
    "dense": ORDER,
    "layer": (
        r"tower language \(blocks\) calls blocks\.0\.first\.weight and 7 more layers several times; use"
        r" propagate=pruned"
    ),
}

BY_HAND = ("pruned", "layer", "dense")  # compensated goes the way of layer; see test_compensated

# {way: what is said where it is refused}; null where the masks are those of full passes.
REFUSED: dict[str, str | None] = {
    "ByDict": None,
    "ByCache": None,
    "ByPreallocatedTensor": None,
    "ByAttribute": ALONE,
    "ByOneAttribute": ALONE,
    "InPlace": None,
    "ByCallingTheNext": OUTSIDE,
}


def masks_by_hand(
    model: PrunableModel, lengths: tuple[int, ...], name: str, propagate: str
) -> dict[str, Tensor]:
    """Masks from full forward passes, one sample at a time."""
    keep, calibration, by_hand = uneven(model).keep, handing.samples(lengths), PRUNERS[name][1]
    with quiet_forward(model.module), torch.no_grad():
        if propagate != "dense":
            prune_by_hand = reference.prune if propagate == "pruned" else reference.prune_layer_by_layer
            return prune_by_hand(model, calibration, by_hand, keep)
        inputs = reference.inputs_of_each(model, model.layers, calibration)
        return {
            layer.name: by_hand(layer.matrix().clone(), inputs[layer], keep[layer.name])[1]
            for layer in model.layers
        }


def assert_pruned_as_by_hand(
    build: Callable[[], PrunableModel], lengths: tuple[int, ...], name: str, propagate: str
) -> None:
    model = build()
    report = prune(model, handing.samples(lengths), PRUNERS[name][0], uneven(model), 2, propagate=propagate)
    expected = masks_by_hand(build(), lengths, name, propagate)
    different = [
        layer.name
        for layer in model.layers
        if not torch.equal(report.masks[layer.name], expected[layer.name])
    ]
    assert not different


@pytest.mark.parametrize("propagate", BY_HAND)
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(
    ("lengths", "rounds"), [((5, 5, 5), 1), ((5, 7, 5, 7, 5), 1), ((5,), 1), ((5, 7, 5), 2)]
)
@pytest.mark.parametrize("way", REFUSED)
def test_masks_are_those_of_full_passes_or_the_stack_is_refused(
    way: str, lengths: tuple[int, ...], rounds: int, name: str, propagate: str
) -> None:
    refused = REFUSED[way]
    if rounds > 1 and (name, propagate) != ("wanda", "dense"):  # whose statistics need no order
        refused = refused or AGAIN.get(propagate)
    if refused is None:
        assert_pruned_as_by_hand(lambda: handing.build(way, rounds), lengths, name, propagate)
        return
    model = handing.build(way, rounds)
    before = [layer.weight.detach().clone() for layer in model.layers]
    with pytest.raises(UserError, match=refused):
        prune(model, handing.samples(lengths), PRUNERS[name][0], uneven(model), 2, propagate=propagate)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model.layers, before, strict=True))


def test_every_way_is_in_the_table() -> None:
    assert REFUSED.keys() == handing.WAYS.keys()


@pytest.mark.parametrize("propagate", BY_HAND)
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_with_the_layers_dense_that_others_call_the_rest_is_pruned(name: str, propagate: str) -> None:
    layers = ("blocks.1.first", "blocks.2.first", "blocks.3.first")
    assert_pruned_as_by_hand(lambda: handing.build("ByCallingTheNext", 1, layers), (5, 7, 5), name, propagate)


@torch.no_grad()
@pytest.mark.parametrize("way", ["ByDict", "ByPreallocatedTensor"])
def test_dense_inputs_of_a_tower_that_runs_twice_are_measured_before_it_is_pruned(way: str) -> None:
    model, calibration = handing.build(way, 2), handing.samples((5, 7, 5))
    measured = measure_dense(model, calibration, 2)
    for layer in model.layers:
        inputs = reference.inputs_of(model, layer, calibration)
        torch.testing.assert_close(
            measured[layer.name][:-1], inputs.double().square().sum(dim=0), rtol=1e-5, atol=1e-5
        )


class Masked(nn.Module):
    """The model keeps on itself which tokens its blocks are to read, instead of handing it to them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MaskedBlock(self) for _ in range(2))
        self.real: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        self.real = (inputs[..., :1] > 0).float()
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


class MaskedBlock(nn.Module):
    def __init__(self, model: Masked) -> None:
        super().__init__()
        self.linear, self.model = nn.Linear(16, 16), [model]

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.linear(hidden * self.model[0].real)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(5, 5, 5, 5), (5, 5, 7)])
def test_state_of_the_inputs_alone_is_that_of_another_batch(lengths: tuple[int, ...]) -> None:
    model = prunable("masked", Masked(), None, tiny.first_output_loss, Selection())
    with pytest.raises(UserError, match=r"blocks\.1 puts out something else when it is run alone"):
        Flow(model, model.towers[0], handing.samples(lengths).batches(2))
    Flow(model, model.towers[0], handing.samples(lengths).batches(2)[:1])


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", hybrids.EVERY)
def test_hybrids_are_pruned_as_full_passes_would_have_it(family: str, name: str) -> None:
    pruner, by_hand = PRUNERS[name]
    model, other = (hybrids.build(family, hybrids.UNCALLED.get(family)) for _ in range(2))
    calibration, allocation = tiny.samples("llama"), uneven(model)
    report = prune(model, calibration, pruner, allocation, 2)
    with quiet_forward(other.module):
        expected = reference.prune(other, calibration, by_hand, allocation.keep)
    different = [
        layer.name
        for layer in model.layers
        if not torch.equal(layer.oriented(report.masks[layer.name]), expected[layer.name])
    ]
    assert not different


@pytest.mark.parametrize("name", ["jamba", "mamba", *hybrids.TIED])
def test_weights_that_are_used_without_their_module_are_refused(name: str) -> None:
    model, calibration = hybrids.build(name), tiny.samples("llama")
    for propagate in ("pruned", "dense"):
        with pytest.raises(UserError, match=r"outside the call of their module.* add skip_layers=\["):
            require_capture(model, PRUNERS["wanda"][0], calibration, 2, propagate, "all")
    require_capture(model, Magnitude(), calibration, 2, "pruned", "all")
    prune(model, calibration, Magnitude(), uneven(model), 2)
