"""Where the weights of a model's blocks are while nobody uses them: in place, on the CPU, or on the disk.

A block's weights come in when the block runs, or when someone works on them, and the least recently used
block leaves for them. Two blocks stay at a time: in a backward pass the gradients of one are still on their
way when the one before it is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ecoflap.errors import NumericalError
from ecoflap.models.core.towers import Block

AT_A_TIME = 2
WORK = "offload"  # the folder below a run's for pruned blocks and hidden states on the disk


class Saves(Protocol):
    """A model that can write itself while its weights are in place."""

    @property
    def module(self) -> nn.Module:
        """The transformers model."""

    @property
    def processor(self) -> Any:
        """Its tokenizer or processor."""

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""


class Placement:
    """Everything stays where it is.

    Attributes:
        kind: none, cpu or disk.
        device: where blocks run; null for where the weights are.
        folder: for what doesn't fit into memory; null where it all does.
    """

    kind = "none"
    device: torch.device | None = None
    folder: Path | None = None

    @contextmanager
    def using(self, block: Block) -> Iterator[None]:
        """Have a block's weights in place; they may be changed if ``changed`` is called before the end."""
        yield

    def changed(self, block: Block) -> None:
        """Keep the weights of a block as they are now."""

    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor, Iterable[Tensor]]]:
        """The entries of the module's state dict: the name, something of its shape and dtype, and the values
        in parts.
        """
        for name, tensor in module.state_dict().items():
            yield name, tensor, [tensor]

    @contextmanager
    def all_in_place(self) -> Iterator[None]:
        """Have the weights of all blocks in place, as far as there is a place for them."""
        yield

    def save(self, model: Saves, folder: Path) -> None:
        """Write the model's checkpoint."""
        model.save(folder)


class Source(Protocol):
    """Holds the weights of the blocks that are offloaded."""

    def read(self, names: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        """Weights by name, on the CPU in the given dtypes."""

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace the weights of a block."""


class Offloaded(Placement):
    """Blocks live in a source, and visit the device."""

    def __init__(
        self,
        kind: str,
        module: nn.Module,
        blocks: list[Block],
        source: Source,
        device: torch.device,
        folder: Path,
    ) -> None:
        """Take the blocks over; from now on their ``forward`` brings their weights in."""
        self.kind, self.source, self.device, self.folder = kind, source, device, folder
        self.parameters = own_parameters(module, blocks)
        self.dtypes = {
            block: {name: parameter.dtype for name, parameter in mine.items()}
            for block, mine in self.parameters.items()
        }
        self._present: list[str] = []  # names of blocks, the least recently used first
        self._checked: set[str] = set()
        for block in blocks:
            block.module.forward = self._entering(block, block.module.forward)

    def _entering(self, block: Block, forward: Callable[..., Any]) -> Callable[..., Any]:
        def enter(*arguments: Any, **keywords: Any) -> Any:
            self._load(block.name)
            return forward(*arguments, **keywords)

        return enter

    def _load(self, name: str) -> None:
        if name in self._present:
            self._present.remove(name)
        else:
            while len(self._present) >= AT_A_TIME:
                self._release(self._present.pop(0))
            mine = self.parameters[name]
            for full, tensor in self.source.read(self.dtypes[name]).items():
                if name not in self._checked and not torch.isfinite(tensor).all():
                    raise NumericalError(
                        f"{full} holds NaN or infinite weights; the checkpoint is damaged, nothing was pruned"
                    )
                mine[full].data = tensor.to(
                    self.device, mine[full].dtype
                )  # a scorer may hold half-precision weights in fp32
            self._checked.add(name)
        self._present.append(name)

    def _release(self, name: str) -> None:
        for parameter in self.parameters[name].values():
            parameter.data = absent(parameter.shape, parameter.dtype)

    @contextmanager
    def using(self, block: Block) -> Iterator[None]:
        """Have a block's weights in place."""
        self._load(block.name)
        yield

    def changed(self, block: Block) -> None:
        """Give the block's weights as they are now to the source."""
        self.source.write(
            block.name,
            {full: parameter.detach().cpu() for full, parameter in self.parameters[block.name].items()},
        )

    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor, Iterable[Tensor]]]:
        """The entries of the module's state dict; a block's are read for the moment."""
        offloaded = {name: dtype for mine in self.dtypes.values() for name, dtype in mine.items()}
        for name, tensor in module.state_dict().items():
            yield (
                name,
                tensor,
                [self.source.read({name: offloaded[name]})[name] if name in offloaded else tensor],
            )


class OnCpu(Offloaded):
    """Blocks live in the CPU's memory."""

    @contextmanager
    def all_in_place(self) -> Iterator[None]:
        """Have all blocks in place, on the CPU."""
        self._present.clear()
        for name, mine in self.parameters.items():
            for full, tensor in self.source.read(self.dtypes[name]).items():
                mine[full].data = tensor
        try:
            yield
        finally:
            for name in self.parameters:
                self._release(name)


class InMemory:
    """A source that holds the tensors themselves."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def read(self, names: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        """The tensors, not copied where the dtype is their own."""
        return {name: self.tensors[name].to(dtype) for name, dtype in names.items()}

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Take other tensors for some names."""
        self.tensors.update(tensors)


def block_bytes(blocks: Iterable[Block], width: int = 1) -> list[int]:
    """Bytes of each block's weights, at ``width`` bytes a number or their own, if that is more."""
    return [_bytes(block.module, width) for block in blocks]


def bytes_outside(module: nn.Module, blocks: Iterable[Block], width: int = 1) -> int:
    """Bytes of the weights that belong to no block."""
    return _bytes(module, width) - sum(block_bytes(blocks, width))


def _bytes(module: nn.Module, width: int) -> int:
    return sum(parameter.numel() * max(parameter.dtype.itemsize, width) for parameter in module.parameters())


def absent(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A stand-in for a weight that is offloaded: the right shape and one number, NaN, so that a use by
    mistake can't go unnoticed.
    """
    return torch.full((), float("nan"), dtype=dtype).expand(shape)


def is_absent(tensor: Tensor) -> bool:
    """Whether a tensor is such a stand-in."""
    return tensor.numel() > 1 and not any(tensor.stride())


def own_parameters(module: nn.Module, blocks: list[Block]) -> dict[str, dict[str, nn.Parameter]]:
    """{block: {name: parameter}} of the parameters that belong to one block and to nothing else."""
    places: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    found: dict[str, dict[str, nn.Parameter]] = {}
    for block in blocks:
        mine = {f"{block.name}.{name}": parameter for name, parameter in block.module.named_parameters()}
        found[block.name] = {
            name: p
            for name, p in mine.items()
            if all(place.startswith(f"{block.name}.") for place in places[id(p)])
        }
    return found
