"""The walk over blocks gives each block's inputs, whoever asks, in whatever order."""

from __future__ import annotations

import pytest
import torch

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.blocks.walk import walk
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny


def measured(
    model: PrunableModel, batches: list, statistic: type[Statistic], leave: bool, dense: bool = False
) -> dict[str, torch.Tensor]:
    """{layer: what was summed over its inputs} of a walk."""
    found = {}
    with quiet_forward(model.module), torch.no_grad():
        for visit in walk(model, model.towers, batches, "test", dense):
            statistics = visit.measure(statistic, leave)
            assert statistics is not None
            found |= {layer.name: statistics[layer].sum for layer in visit.block.layers}
            if not leave:
                visit.leave()
    return found


@pytest.mark.parametrize("statistic", [MeanSquare, Gram])
@pytest.mark.parametrize("family", ["gpt2", "blip2_t5"])
def test_one_pass_sees_what_two_see(family: str, statistic: type[Statistic]) -> None:
    model, batches = tiny.build(family), tiny.samples(family).batches(2)
    one, two = (measured(model, batches, statistic, leave) for leave in (True, False))
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
