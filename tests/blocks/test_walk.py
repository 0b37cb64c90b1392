"""The walk over blocks gives each block's inputs, whoever asks, in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.blocks.walk import walk
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny

from .stacks import WAYS, batches, change, in_full_passes, model_of, plainly


def measured(
    model: PrunableModel,
    samples: Sequence[Batch],
    statistic: type[Statistic],
    leave: bool,
    dense: bool = False,
) -> dict[str, torch.Tensor]:
    """{layer: what was summed over its inputs} of a walk."""
    found = {}
    with quiet_forward(model.module), torch.no_grad():
        for visit in walk(model, model.towers, samples, "test", dense):
            statistics = visit.measure(statistic, leave)
            assert statistics is not None
            found |= {layer.name: statistics[layer].sum for layer in visit.block.layers}
            if not leave:
                visit.leave()
    return found


@pytest.mark.parametrize("statistic", [MeanSquare, Gram])
@pytest.mark.parametrize("family", ["gpt2", "blip2_t5"])
def test_one_pass_sees_what_two_see(family: str, statistic: type[Statistic]) -> None:
    model, samples = tiny.build(family), tiny.samples(family).batches(2)
    one, two = (measured(model, samples, statistic, leave) for leave in (True, False))
    assert list(one) == [layer.name for layer in model.layers]
    for name, total in one.items():
        torch.testing.assert_close(two[name], total, rtol=0, atol=0)


def test_nothing_is_gathered_without_a_statistic() -> None:
    model = tiny.build("gpt2")
    with quiet_forward(model.module):
        visits = []
        for visit in walk(model, model.towers, tiny.samples("gpt2").batches(2), "test"):
            assert visit.measure(None, leave=True) is None
            visits.append(visit.block)
    assert visits == model.blocks


def test_blocks_are_visited_without_data() -> None:
    model = tiny.build("blip2_t5", skip_layers=("vision_model",))
    assert not all(tower.layers for tower in model.towers)
    visited = [visit.block for visit in walk(model, model.towers, [], "test")]
    assert visited == [block for tower in model.towers if tower.layers for block in tower.blocks]


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_each_block_is_entered_as_in_the_dense_model(way: str) -> None:
    """Or the tower is refused, as some of its blocks read others behind them."""
    model, dense, given = model_of(way), model_of(way), batches("in all")
    visits = walk(
        model,
        model.towers[1:],
        [{name: tensor.clone() for name, tensor in batch.items()} for batch in given],
        "test",
        dense=True,
    )
    if way in ("backwards", "out_of_order", "looped", "shared_tensor_twice"):
        with pytest.raises(UserError, match="the model runs some of them before earlier ones"):
            next(visits)
        return
    for visit in visits:
        block = dense.towers[1].blocks[visit.index].module
        expected = in_full_passes(dense, block, given)
        for stream, (entered, left) in zip(visit.flow.streams, expected, strict=True):
            assert torch.equal(stream.hidden, entered), visit.block.name
            assert torch.equal(stream.call(visit.index).run(block, stream.hidden), left), visit.block.name
        visit.leave()
        change(visit.block)


@torch.no_grad()
def test_dense_inputs_behind_a_tower_that_is_visited_backwards_are_refused() -> None:
    """Its streams end at its first block, so what the tower puts out is not stored."""

    def see(module: Any, image: Tensor) -> Tensor:
        first = module.vision[0](image)
        hidden: Tensor = module.vision[2](module.vision[1](first) + first)
        return hidden

    def loss(module: Any, batch: Batch, _: int) -> Tensor:
        hidden: Tensor = plainly(module.layers, batch["hidden"] + see(module, batch["image"]), [])
        return hidden.mean(dim=(1, 2))

    model = replace(model_of("plainly"), loss_function=loss)
    with pytest.raises(UserError, match=r"propagate=dense prunes tower vision \(vision\) before language"):
        list(walk(model, model.towers, batches("in all"), "test", dense=True))
