from contextlib import suppress
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks.block_call import first_tensor
from ecoflap.blocks.bypass import bypassing, find_bypass
from ecoflap.blocks.capture import Flow
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from tests import tiny

HIDDEN, MASK, BIAS = torch.zeros(2, 3, 4), torch.ones(2, 3), torch.full((3, 3), 2.0)


def test_hidden_states_go_through() -> None:
    made = find_bypass((HIDDEN, MASK), {"bias": BIAS}, 0, HIDDEN + 1)
    other = torch.ones(5, 1, 4)
    assert made is not None
    assert made((other, MASK), {"bias": BIAS}) is other
    named = find_bypass((MASK,), {"hidden": HIDDEN}, "hidden", (HIDDEN + 1,))
    assert named is not None
    assert named((MASK,), {"hidden": other}) == (other,)


def test_what_a_block_hands_on_is_handed_on() -> None:
    made = find_bypass((HIDDEN, MASK), {"bias": BIAS, "cache": None}, 0, (HIDDEN + 1, None, BIAS))
    assert made is not None
    hidden, nothing, bias = made((HIDDEN, MASK), {"bias": BIAS + 1, "cache": BIAS})
    assert hidden is HIDDEN
    assert nothing is None
    assert torch.equal(bias, BIAS + 1)


class Named(NamedTuple):
    hidden: Tensor
    bias: Tensor


@pytest.mark.parametrize(
    "output",
    [
        (HIDDEN + 1, BIAS * 2),
        HIDDEN[:, :2],
        HIDDEN.half(),
        {"hidden": HIDDEN},
        (),
        (3, HIDDEN),
        Named(HIDDEN + 1, BIAS),  # which the model reads by name
    ],
)
def test_a_block_that_makes_more_than_hidden_states_has_none(output: Any) -> None:
    assert find_bypass((HIDDEN,), {"bias": BIAS}, 0, output) is None


def test_forward_is_put_back() -> None:
    plain, wrapped = nn.Linear(1, 1), nn.Linear(1, 1)
    own = wrapped.forward
    wrapped.forward = lambda value: own(value)  # as an offloader does
    mine = wrapped.__dict__["forward"]
    with (
        suppress(KeyboardInterrupt),
        bypassing(dict.fromkeys((plain, wrapped), lambda arguments, keywords: arguments[0])),
    ):
        assert plain(HIDDEN) is HIDDEN
        raise KeyboardInterrupt
    assert "forward" not in plain.__dict__
    assert wrapped.__dict__["forward"] is mine


@torch.no_grad()
@pytest.mark.parametrize(("family", "left_out"), [("llama", 2), ("opt", 2), ("gpt2", 2), ("blip2_t5", 2)])
def test_blocks_are_run_by_no_more_than_two_samples(family: str, left_out: int) -> None:
    model, ran = tiny.build(family), []
    tower = model.towers[0]
    for block in tower.blocks:
        block.layers[0].module.register_forward_pre_hook(
            lambda module, arguments: ran.append(len(arguments[0]))
        )
    Flow(model, tower, tiny.samples(family, lengths=(5,) * 6).batches(3))
    assert ran == [2] * left_out * 3  # in the model, in the model by two others, and alone


@torch.no_grad()
def test_the_block_that_makes_a_position_bias_is_run() -> None:
    model, ran = tiny.build("t5"), []
    tower = next(tower for tower in model.every_tower if tower.name == "encoder")
    for index, block in enumerate(tower.blocks):
        block.layers[0].module.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    batches = tiny.samples("t5", lengths=(5,) * 4).batches(2)
    with quiet_forward(model.module):
        Flow(model, tower, batches)
    in_the_model, alone = [0, 1], [1, 0]
    assert ran == in_the_model * 2 + alone + [0] * (1 + len(batches))


class Looking(nn.Module):
    """The scale that a block gets depends on what the block before it made."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Scaled() for _ in range(3)])

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden, hidden.mean(dim=(1, 2), keepdim=True))
        return hidden


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)

    def forward(self, hidden: Tensor, scale: Tensor) -> Tensor:
        return self.linear(hidden) + scale


@torch.no_grad()
def test_arguments_that_depend_on_hidden_states_are_noticed() -> None:
    torch.manual_seed(0)
    model = prunable(
        "looking",
        Looking(),
        None,
        lambda module, batch, _: module(batch["hidden"]).mean(dim=(1, 2)),
        Selection(),
    )
    batches = [{"hidden": torch.randn(2, 3, 4)} for _ in range(2)]
    assert all(
        torch.equal(call.tensors[0], scale)
        for call, scale in zip(arguments(model, batches), really(model, batches), strict=True)
    )


def arguments(model: PrunableModel, batches: list[dict[str, Tensor]]) -> list[Any]:
    flow, found = Flow(model, model.towers[0], batches), []
    for index in range(len(model.towers[0].blocks)):
        found.append([stream.call(index) for stream in flow.enter(index)])
        flow.leave(index)
    return [call for of_stream in zip(*found, strict=True) for call in of_stream]


def really(model: PrunableModel, batches: list[dict[str, Tensor]]) -> list[Tensor]:
    seen: list[Tensor] = []
    handles = [
        block.module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
        for block in model.blocks
    ]
    for batch in batches:
        first_tensor(model.loss(batch))
    for handle in handles:
        handle.remove()
    return seen
