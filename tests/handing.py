"""Small stacks whose blocks hand each other more than hidden states, each in another way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from tests import tiny

BLOCKS = 4


class Block(nn.Module):
    """Reads what the block before it handed on, if anything, and hands something on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.shared: list[
            list[Block]
        ] = []  # all blocks; in a list, or they would be submodules of each other

    def mixed(self, hidden: Tensor, handed: Tensor | None) -> tuple[Tensor, Tensor]:
        """(hidden states, what to hand on)."""
        inner = self.first(hidden)
        moved = inner if handed is None else inner + handed
        return hidden + torch.tanh(self.second(torch.tanh(moved))), torch.tanh(inner)


class ByDict(Block):
    """Replaces the entry of a dict that all blocks are given."""

    def forward(self, hidden: Tensor, box: Any) -> Tensor:
        output, box["states"] = self.mixed(hidden, box.get("states"))
        return output


class ByCache(Block):
    """Appends to a list in an object in a dict, and reads its last item."""

    def forward(self, hidden: Tensor, box: Any) -> Tensor:
        states = box["cache"].states
        output, handed = self.mixed(hidden, states[-1] if states else None)
        states.append(handed)
        return output


class ByPreallocatedTensor(Block):
    """Writes in place into a tensor that all blocks are given."""

    def forward(self, hidden: Tensor, box: Any) -> Tensor:
        output, handed = self.mixed(hidden, box["buffer"].clone())
        box["buffer"].copy_(handed)
        return output


class ByAttribute(Block):
    """Leaves it in an attribute, where the next block finds it, and where it stays from pass to pass."""

    def forward(self, hidden: Tensor, box: Any) -> Tensor:
        blocks = self.shared[0]
        place = blocks.index(self)
        output, self.handed = self.mixed(hidden, blocks[place - 1].handed if place else None)
        return output


class ByOneAttribute(Block):
    """Replaces what the first block holds for all of them."""

    def forward(self, hidden: Tensor, box: Any) -> Tensor:
        first = self.shared[0][0]
        output, first.handed = self.mixed(hidden, None if self is first else first.handed)
        return output


class InPlace(Block):
    """Adds to the hidden states that it was given, which are another block's output."""

    def forward(self, hidden: Tensor, box: Any) -> Tensor:
        return hidden.add_(torch.tanh(self.second(torch.tanh(self.first(hidden)))))


class ByCallingTheNext(Block):
    """Calls a layer of the next block."""

    def forward(self, hidden: Tensor, box: Any) -> Tensor:
        blocks = self.shared[0]
        place = blocks.index(self)
        handed = torch.tanh(blocks[place + 1].first(hidden)) if place + 1 < len(blocks) else None
        return self.mixed(hidden, handed)[0]


KINDS = (ByDict, ByCache, ByPreallocatedTensor, ByAttribute, ByOneAttribute, InPlace, ByCallingTheNext)
WAYS: dict[str, type[Block]] = {kind.__name__: kind for kind in KINDS}


class Stack(nn.Module):
    """The blocks, one after the other, once or several times."""

    def __init__(self, kind: type[Block], rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.enter = nn.Linear(16, 16)
        self.blocks = nn.ModuleList(kind() for _ in range(BLOCKS))
        for block in self.blocks:
            block.shared = [list(self.blocks)]

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.enter(inputs)
        box = {"cache": SimpleNamespace(states=[]), "buffer": torch.zeros_like(hidden)}
        for _ in range(self.rounds):
            for block in self.blocks:
                hidden = block(hidden, box)
        return hidden


def build(way: str, rounds: int = 1, skip_layers: tuple[str, ...] = ()) -> PrunableModel:
    """A stack of one kind, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prunable(
            way, Stack(WAYS[way], rounds), None, tiny.first_output_loss, Selection(None, [*skip_layers])
        )


def samples(lengths: tuple[int, ...] = (5, 7, 5, 7, 5)) -> CalibrationSet:
    """Inputs and targets."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in lengths:
        made.append(
            {
                "inputs": torch.randn(length, 16, generator=generator),
                "target": torch.randn((), generator=generator),
            }
        )
    return CalibrationSet("handing", tuple(made))
