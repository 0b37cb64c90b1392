"""Weights on the disk: blocks are read from a checkpoint's safetensors shards and written into new ones."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from typing_extensions import override

from ecoflap.console.startup import M_MMAP_THRESHOLD
from ecoflap.models.core.finite_weights import require_finite
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block
from ecoflap.models.loading.conversion import saved_form
from ecoflap.models.loading.converted_tensor import CheckpointTensor
from ecoflap.models.offload.offloaded import Offloaded
from ecoflap.storage.disk_space import writing
from ecoflap.storage.file_names import WEIGHTS_INDEX
from ecoflap.storage.stored_tensor import StoredTensor, stored_tensors, write_in_parts

LARGE = 2**20  # bytes
WITHOUT_GLIBC = (OSError, AttributeError)
Parts = Callable[[str], Iterable[Tensor]]
"""The values of a tensor, by its name, in parts."""


class Shards:
    """The safetensors files of a checkpoint folder, and those of blocks that were changed since.

    Attributes:
        work: folder of the changed blocks.
        tensors: each parameter in the checkpoint.
        changed: each parameter of a changed block.
    """

    def __init__(self, tensors: Mapping[str, CheckpointTensor], work: Path) -> None:
        """Begin with no block changed.

        Args:
            tensors: each parameter in the checkpoint, by name.
            work: folder for changed blocks; created when needed.
        """
        self.work, self.tensors = work, dict(tensors)
        self.changed: dict[str, StoredTensor] = {}

    def find(self, name: str) -> CheckpointTensor:
        """Where a parameter is stored now."""
        return self.changed.get(name) or self.tensors[name]

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A parameter, in the given dtype."""
        return self.find(name).read().to(dtype)

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a block into its own shard.

        Raises:
            UserError: if the disk is full.
        """
        path, beside = self.work / f"{block}.safetensors", self.work / f"{block}.partial"
        with writing("pruned blocks", self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            write_in_parts(beside, tensors, lambda name: [tensors[name]])
        beside.replace(path)
        self.changed.update(stored_tensors(path))


class OnDisk(Offloaded):
    """Blocks are stored in safetensors shards."""

    kind = "disk"
    source: Shards  # type: ignore[assignment]
    slow = True

    def __init__(self, module: nn.Module, blocks: list[Block], *arguments: Any) -> None:
        """As ``Offloaded``; the C allocator also returns large allocations to the system at once."""
        super().__init__(module, blocks, *arguments)
        own = {id(one) for mine in self.parameters.values() for one in mine.values()}
        shared = {id(one) for block in blocks for one in block.module.parameters()} - own
        every = module.named_parameters(remove_duplicate=False)
        # They stay in memory, where they are pruned.
        self._shared = {name for name, parameter in every if id(parameter) in shared}
        # glibc raises that limit whenever a large allocation is freed, and then keeps the memory of released
        # blocks and activations.
        with suppress(*WITHOUT_GLIBC):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)

    @override
    def _release(self, name: str) -> None:
        """Release a block, and the memory that the allocator keeps of its small allocations."""
        super()._release(name)
        with suppress(*WITHOUT_GLIBC):
            ctypes.CDLL(None).malloc_trim(0)

    @override
    def save(self, model: PrunableModel, folder: Path) -> None:
        """Write new shards, one per block and one for the rest, with their index, a block at a time."""
        self.store_changes()
        module: Any = model.module
        file_of: dict[str, str] = {}
        total = 0
        for number, saved, parts in self._new_shards(module):
            file = f"model-{number:05d}.safetensors"
            write_in_parts(folder / file, saved, parts)
            file_of |= dict.fromkeys(saved, file)
            total += sum(tensor.nbytes for tensor in saved.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n")
        module.config.architectures = [type(module).__name__]
        for settings in ("config", "generation_config"):
            if getattr(module, settings, None) is not None:
                getattr(module, settings).save_pretrained(folder)
        model.processor.save_pretrained(folder)

    def _new_shards(self, module: nn.Module) -> Iterator[tuple[int, dict[str, Tensor], Parts]]:
        """(number, tensors, values in parts) of each shard: those of blocks from 1, and 0 for the rest."""
        read = self.source.read
        for number, mine in enumerate(self.parameters.values(), start=1):
            if mine:
                saved = saved_form(module, {name: read(name, one.dtype) for name, one in mine.items()})
                yield number, saved, lambda name, saved=saved: [saved[name]]  # type: ignore[misc]
        offloaded = {name for mine in self.parameters.values() for name in mine}
        state = module.state_dict()
        rest = _untied(module, {name: tensor for name, tensor in state.items() if name not in offloaded})
        named = {id(tensor): name for name, tensor in rest.items()}
        saved = saved_form(module, rest)
        yield 0, saved, lambda name: self._parts(named.get(id(saved[name])), saved[name])

    @override
    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor, Iterable[Tensor]]]:
        """The entries of the module's state dict, read part by part."""
        self.store_changes()
        for name, tensor in module.state_dict().items():
            yield name, tensor, self._parts(name, tensor)

    def _parts(self, name: str | None, tensor: Tensor) -> Iterable[Tensor]:
        """The values of an entry of the state dict, part by part from its file if nothing changes it."""
        if name not in self.source.tensors or name in self._shared:
            return [tensor]
        return (part.to(tensor.dtype) for part in self.source.find(name).parts())


def _untied(module: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor under one of its names: the first that the model's class does not tie to another."""
    tied = getattr(module, "all_tied_weights_keys", None) or getattr(module, "_tied_weights_keys", None) or ()
    seen: dict[int, str] = {}
    for name in sorted(tensors, key=lambda name: any(re.search(pattern, name) for pattern in tied)):
        seen.setdefault(tensors[name].data_ptr(), name)
    return {name: tensor for name, tensor in tensors.items() if seen[tensor.data_ptr()] == name}


def read_outside(
    module: nn.Module, tensors: Mapping[str, CheckpointTensor], offloaded: set[str], device: torch.device
) -> None:
    """Load the weights that belong to no block, and the buffers that the checkpoint has.

    Args:
        module: the model.
        tensors: each parameter and buffer in the checkpoint, by name.
        offloaded: names of the parameters of offloaded blocks.
        device: device of the loaded weights.

    Raises:
        NumericalError: if a weight is not finite.
    """
    made: dict[int, nn.Parameter] = {}
    for path, owner in module.named_modules():
        for attribute, parameter in owner._parameters.items():
            name = f"{path}.{attribute}" if path else attribute
            if parameter is None or name in offloaded:
                continue
            stored = tensors[name]
            if id(parameter) not in made:
                require_finite(name, stored.parts())
                values = stored.mapped().to(device, parameter.dtype)
                made[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
            owner._parameters[attribute] = made[id(parameter)]
            if type(owner) is nn.Embedding and owner.max_norm is None and device.type == "cpu":
                owner.forward = _lookup(owner, stored)  # type: ignore[method-assign, assignment]
    for name, buffer in module.named_buffers():
        if name in tensors:
            buffer.copy_(tensors[name].read())


def _lookup(owner: nn.Embedding, stored: CheckpointTensor) -> Callable[[Tensor], Tensor]:
    """The forward pass of an embedding that reads only the rows it needs from the checkpoint."""
    loaded = owner.weight.dtype  # a scorer may hold it in fp32, after loading has rounded it

    def look_up(indices: Tensor) -> Tensor:
        wanted, where = torch.unique(indices, return_inverse=True)
        return embedding(where, stored.rows(wanted).to(loaded).to(owner.weight.dtype))

    return look_up
