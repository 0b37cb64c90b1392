"""Stacks of blocks, and the ways in which models run them."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.blocks.block_call import first_tensor
from ecoflap.data.batch import Batch
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable


class Block(nn.Module):
    """A residual layer that may read and write what it is given beside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, *_: Any) -> Any:
        return hidden + self.linear(hidden).tanh()


class Adding(Block):
    """Adds what it is given."""

    def forward(self, hidden: Tensor, other: Tensor) -> Tensor:
        return super().forward(hidden) + other


class Remembering(Block):
    """Reads the values of the block that first wrote, and writes where nobody did: Gemma 3n's and Gemma 4's
    key-value states.
    """

    def forward(self, hidden: Tensor, shared: Any) -> Tensor:
        if "values" not in shared:
            shared["values"] = self.linear(hidden)
        return super().forward(hidden) + shared["values"]


class Replacing(Block):
    """Puts another tensor in the place of the one that it reads, as a running state."""

    def forward(self, hidden: Tensor, shared: dict[str, Tensor]) -> Tensor:
        shared["sum"] = shared["sum"] + self.linear(hidden)
        return super().forward(hidden) + shared["sum"]


class Appending(Block):
    """Reads what all blocks before it wrote, as from a cache that grows."""

    def forward(self, hidden: Tensor, shared: list[Tensor]) -> Tensor:
        shared.append(self.linear(hidden))
        return super().forward(hidden) + torch.stack(shared).sum(dim=0)


class Accumulating(Block):
    """Writes into a tensor."""

    def forward(self, hidden: Tensor, total: Tensor) -> Tensor:
        total.add_(self.linear(hidden))
        return super().forward(hidden) + total


class Overwriting(Block):
    """Writes into its own hidden states."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.add_(self.linear(hidden).tanh())


class Making(Block):
    """The first makes something for all later ones, from weights that are pruned."""

    def forward(self, hidden: Tensor, made: Tensor | None) -> tuple[Tensor, Tensor]:
        made = self.linear(hidden) if made is None else made
        return super().forward(hidden) + made, made


class Cache:
    """An object that holds tensors."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []


class Caching(Appending):
    def forward(self, hidden: Tensor, cache: Cache) -> Tensor:
        return super().forward(hidden, cache.layers)


class Model(nn.Module):
    """Two towers; ``way`` says how the hidden states [batch, tokens, 4] go through the second, given the
    states of the first's blocks.
    """

    def __init__(self, way: Callable[..., Tensor], kind: type[Block] = Block) -> None:
        super().__init__()
        self.vision = nn.ModuleList([Block() for _ in range(3)])
        self.layers = nn.ModuleList([kind() for _ in range(4)])
        self.way = way

    def forward(self, hidden: Tensor, image: Tensor) -> Tensor:
        return self.way(self.layers, hidden, self.see(image) if image.any() else [image])

    def see(self, image: Tensor) -> list[Tensor]:
        states = [image]
        for block in self.vision:
            states.append(block(states[-1]))
        return states


def deepstack(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    hidden = hidden + states[-1]
    for index, block in enumerate(layers):
        hidden = block(hidden)
        if index + 1 < len(states):
            hidden = hidden + states[index]
    return hidden


def in_place(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for index, block in enumerate(layers):
        hidden = block(hidden)
        hidden += states[-1] * (index == 1)
    return hidden


def skipping_in_place(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """The states before the first blocks are added to those before the last ones, as in a U-Net."""
    hidden, skipped = hidden * 1, []
    for index, block in enumerate(layers):
        if index < 2:
            skipped.append(hidden)
        else:
            hidden += skipped.pop()
        hidden = block(hidden)
    return hidden


def skipping(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """The last block reads the first's output too."""
    first = layers[0](hidden)
    second = layers[1](first)
    return layers[3](layers[2](second) + first)


def backwards(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for block in reversed(layers):
        hidden = block(hidden + states[-1])
    return hidden


def out_of_order(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """Each block reads the very output of another one, but not of the one before it in the list."""
    return layers[3](layers[1](layers[2](layers[0](hidden))))


def narrowed(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """The last token is cut off behind each block: the rest begins at the same address."""
    for block in layers:
        hidden = block(hidden)[:, :-1]
    return hidden


def transposed(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """As many tokens as features, which change places: the address and the shape stay."""
    hidden = hidden[:, :4]
    for block in layers:
        hidden = block(hidden).transpose(1, 2)
    return hidden


def looped(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for _ in range(2):
        for block in layers:
            hidden = block(hidden)
    return hidden


def side_by_side(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """A list of mergers."""
    return sum(block(state) for block, state in zip(layers, states, strict=False)) + hidden


def given_depths(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """Each block reads another block of the first tower."""
    for index, block in enumerate(layers):
        hidden = block(hidden, states[min(index, len(states) - 1)])
    return hidden


def given_end(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for block in layers:
        hidden = block(hidden, states[-1])
    return hidden


def given_mean(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    for block in layers:
        hidden = block(hidden, hidden.mean(dim=1, keepdim=True))
    return hidden


def given_scaled_in_place(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """The model writes into what it gives to the blocks."""
    given = hidden.mean(dim=1, keepdim=True)
    for block in layers:
        hidden = block(hidden, given)
        given.mul_(0.5).add_(1)
    return hidden


def given_mean_with_pictures(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """Pictures are added between blocks, which are then given what depends on blocks."""
    for block in layers:
        if len(states) == 1:
            hidden = block(hidden, torch.ones(()))
        else:
            hidden = block(hidden, hidden.mean(dim=1, keepdim=True)) + states[-1]
    return hidden


def given_mean_of_short_ones(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """What the blocks are given depends on blocks in one kind of batch, and in the other it doesn't."""
    for block in layers:
        hidden = block(hidden, hidden.mean(dim=1, keepdim=True) if hidden.shape[1] < 5 else torch.ones(()))
    return hidden


def depths_of_short_ones(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    """Only short samples read more of the first tower than its end."""
    return (given_depths if hidden.shape[1] < 5 else given_end)(layers, hidden, states)


def twice(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Two passes that don't depend on each other."""

    def passes(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        return way(layers, hidden, states) + way(layers, hidden.flip(1), states)

    return passes


def plainly(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    hidden = hidden * 1  # a copy, as blocks may write into it
    for block in layers:
        hidden = block(hidden)
    return hidden


def sharing(make: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    def way(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
        shared = make(hidden)
        for block in layers:
            hidden = block(hidden, shared)
        return hidden

    return way


def handed_on(layers: nn.ModuleList, hidden: Tensor, states: list[Tensor]) -> Tensor:
    made = None
    for block in layers:
        hidden, made = block(hidden, made)
    return hidden


WAYS: dict[str, tuple[Callable[..., Tensor], type[Block]]] = {
    "plainly": (plainly, Block),
    "deepstack": (deepstack, Block),
    "in_place": (in_place, Block),
    "twice": (twice(deepstack), Block),
    "skipping": (skipping, Block),
    "skipping_in_place": (skipping_in_place, Block),
    "backwards": (backwards, Block),
    "out_of_order": (out_of_order, Block),
    "narrowed": (narrowed, Block),
    "transposed": (transposed, Block),
    "looped": (looped, Block),
    "side_by_side": (side_by_side, Block),
    "given_depths": (given_depths, Adding),
    "given_end": (given_end, Adding),
    "given_mean": (given_mean, Adding),
    "given_scaled_in_place": (given_scaled_in_place, Adding),
    "given_scaled_in_place_twice": (twice(given_scaled_in_place), Adding),
    "given_mean_with_pictures": (given_mean_with_pictures, Adding),
    "shared_dict": (sharing(lambda _: {}), Remembering),
    "shared_mapping": (sharing(lambda _: UserDict()), Remembering),
    "replaced_in_dict": (sharing(lambda hidden: {"sum": torch.zeros_like(hidden)}), Replacing),
    "shared_list": (sharing(lambda _: []), Appending),
    "shared_cache": (sharing(lambda _: Cache()), Caching),
    "shared_tensor": (sharing(torch.zeros_like), Accumulating),
    "shared_tensor_twice": (twice(sharing(torch.zeros_like)), Accumulating),
    "own_hidden_states": (plainly, Overwriting),
    "handed_on": (handed_on, Making),
}


def model_of(way: str) -> PrunableModel:
    return built(*WAYS[way])


def built(way: Callable[..., Tensor], kind: type[Block]) -> PrunableModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Model(way, kind)
    return prunable(
        "toy", module, None, lambda module, batch, _: module(**batch).mean(dim=(1, 2)), Selection()
    )


def batches(pictures: str) -> list[Batch]:
    """Three batches; all with pictures, none in the first, or none in the last."""
    generator = torch.Generator().manual_seed(1)
    made = [
        {name: torch.randn(3, 5, 4, generator=generator) for name in ("hidden", "image")} for _ in range(3)
    ]
    if pictures != "in all":
        made[0 if pictures == "not in the first" else -1]["image"].zero_()
    return made


def in_full_passes(model: PrunableModel, block: nn.Module, given: list[Batch]) -> list[tuple[Tensor, Tensor]]:
    """What enters and leaves a block, call by call."""
    entered: list[Tensor] = []
    left: list[Tensor] = []
    before = block.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0].clone()))
    after = block.register_forward_hook(lambda _, __, output: left.append(first_tensor(output).clone()))
    for batch in given:
        model.loss({name: tensor.clone() for name, tensor in batch.items()})
    before.remove()
    after.remove()
    return list(zip(entered, left, strict=True))


def change(block: Any) -> None:
    for layer in block.layers:
        layer.write(layer.matrix() * (layer.matrix().abs() > 0.2))
