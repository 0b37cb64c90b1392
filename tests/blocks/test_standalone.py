"""Blocks that compute something else alone than inside the model are refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks.capture import Flow
from ecoflap.blocks.standalone import close
from ecoflap.errors import UserError

from .stacks import Block, batches, built, plainly, sharing

INF, NAN = float("inf"), float("nan")


class Nesting(Block):
    """Runs the next block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.next: list[Block] = []

    def forward(self, hidden: Tensor, *_: Any) -> Tensor:
        hidden = super().forward(hidden)
        return self.next[0](hidden) if self.next else hidden


@torch.no_grad()
def test_a_block_that_another_one_runs_is_refused() -> None:
    def nested(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        for block, following in pairwise(layers):
            block.next = [following]
        return layers[0](hidden)

    model = built(nested, Nesting)
    with pytest.raises(UserError, match=r"layers\.1\.linear\.weight.* outside their own blocks"):
        Flow(model, model.towers[1], batches("in all"))


class Watching(Block):
    """Adds what the first tower left in an attribute."""

    state: Tensor

    def forward(self, hidden: Tensor, *_: Any) -> Tensor:
        return super().forward(hidden) + self.state


class Telling(Watching):
    """Hands on what stands in an attribute, and reads itself only what others have handed on."""

    def forward(self, hidden: Tensor, shared: list[Tensor]) -> Tensor:
        before = sum(shared)
        shared.append(self.state)
        return Block.forward(self, hidden) + before


def noting(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What the first tower puts out is an attribute of the blocks of the second."""

    def noted(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        for block in layers:
            block.state = states[-1].mean()
        return way(layers, hidden, states)

    return noted


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("way", "kind"), [(noting(plainly), Watching), (noting(sharing(lambda _: [])), Telling)]
)
def test_state_that_another_tower_leaves_is_refused(
    way: Callable[..., Tensor], kind: type[Block], count: int
) -> None:
    """Also if there is one batch: its state changes once the other tower is pruned."""
    model = built(way, kind)
    with pytest.raises(UserError, match=r"layers\.\d puts out something else when it is run alone"):
        Flow(model, model.towers[1], batches("in all")[:count])


@torch.no_grad()
def test_a_block_that_draws_random_numbers_is_refused() -> None:
    class Dropping(Block):
        def forward(self, hidden: Tensor, *_: Any) -> Tensor:
            return nn.functional.dropout(super().forward(hidden), training=True)

    model = built(plainly, Dropping)
    with pytest.raises(UserError, match=r"layers\.3 puts out something else .* because of random numbers"):
        Flow(model, model.towers[1], batches("in all"))


@torch.no_grad()
def test_a_block_that_runs_out_of_memory_alone_proves_nothing() -> None:
    class Growing(Block):
        calls = 0

        def forward(self, hidden: Tensor, *_: Any) -> Tensor:
            self.calls += 1
            if self.calls > 2:  # once in the model, once more in it with its layers perturbed
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().forward(hidden)

    model = built(plainly, Growing)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        Flow(model, model.towers[1], batches("in all"))


@pytest.mark.parametrize(
    ("once", "again", "expected"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], True),
        ([[1.0, 2.0]], [[1.00005, 2.0]], True),
        ([[1.0, 2.0]], [[1.0002, 2.0]], False),
        ([[1e4, 1.0], [1e4, 1e-3]], [[1e4, 1.0], [1e4, 1.05e-3]], True),  # of the feature's largest number
        ([[1e4, 1e-3], [1e4, 1e-3]], [[1e4, 1e-3], [1e4, 2e-3]], False),
        ([[NAN, 2.0], [1.0, 2.0]], [[NAN, 2.0], [1.00005, 2.0]], True),
        ([[NAN, 2.0]], [[1.0, 2.0]], False),
        ([[1.0, 2.0]], [[NAN, 2.0]], False),
        ([[INF, 2.0]], [[INF, 2.0]], True),
        ([[INF, 2.0]], [[-INF, 2.0]], False),
        ([1.0, 100.0], [1.005, 100.0], True),
    ],
)
def test_numbers_are_those_of_the_first_run_up_to_rounding(
    once: list[Any], again: list[Any], expected: bool
) -> None:
    assert bool(close(torch.tensor(once), torch.tensor(again))) is expected


def test_half_precision_rounds_more() -> None:
    once, again = torch.tensor([[1.0]]), torch.tensor([[1.003]])
    assert close(once.half(), again.half())
    assert not close(once, again)
    assert not close(once.half(), (again * 1.004).half())


def test_of_no_tokens_all_numbers_are_the_same() -> None:
    assert close(torch.empty(0, 3), torch.empty(0, 3))


def test_counts_and_masks_are_the_same_or_not() -> None:
    assert close(torch.tensor([1, 20000]), torch.tensor([1, 20000]))
    assert not close(torch.tensor([1, 20000]), torch.tensor([1, 20001]))
    assert not close(torch.tensor([True]), torch.tensor([False]))
