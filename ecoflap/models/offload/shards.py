"""Weights on the disk: read block by block from a checkpoint's safetensors shards, and written block by block
into new ones.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import embedding

from ecoflap.errors import NumericalError
from ecoflap.models.loading.checkpoint_folder import INDEX
from ecoflap.models.loading.conversion import Place, saved_form
from ecoflap.models.offload.placement import Offloaded, Saves
from ecoflap.storage.disk_space import writing
from ecoflap.storage.stored_tensor import StoredTensor, stored_tensors, write_in_parts

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE = 2**20  # bytes
WITHOUT_GLIBC = (OSError, AttributeError)


class Shards:
    """The safetensors files of a checkpoint folder, and the files of blocks that were changed since."""

    def __init__(self, places: Mapping[str, Place], work: Path) -> None:
        """``places``: where each parameter is in the checkpoint."""
        self.work, self.places = work, dict(places)
        self.changed: dict[str, StoredTensor] = {}

    def find(self, name: str) -> Place:
        """Where a parameter is now."""
        return self.changed.get(name) or self.places[name]

    def read(self, names: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        """Some parameters in the dtypes that they are to have."""
        return {name: self.find(name).read().to(dtype) for name, dtype in names.items()}

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a block into a shard of its own.

        Raises:
            UserError: the disk is full.
        """
        path, beside = self.work / f"{block}.safetensors", self.work / f"{block}.partial"
        with writing("pruned blocks", self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                beside,
                metadata={"format": "pt"},
            )
        beside.replace(path)
        self.changed.update(stored_tensors(path))


class OnDisk(Offloaded):
    """Blocks live in safetensors shards."""

    source: Shards  # type: ignore[assignment]

    def __init__(self, *arguments: Any) -> None:
        """As ``Offloaded``; from now on the C allocator returns large pieces to the system as soon as they
        are free.
        """
        super().__init__(*arguments)
        # glibc raises that limit whenever a large piece is freed, and then keeps what blocks and activations
        # leave.
        with suppress(*WITHOUT_GLIBC):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)

    def _release(self, name: str) -> None:
        """Let a block go, and what the allocator keeps of its small pieces."""
        super()._release(name)
        with suppress(*WITHOUT_GLIBC):
            ctypes.CDLL(None).malloc_trim(0)

    def save(self, model: Saves, folder: Path) -> None:
        """Write new shards, one per block and one for all the rest, with their index; the whole model is
        never in memory.
        """
        module = model.module
        places: dict[str, str] = {}
        total = 0
        for number, mine in enumerate(self.parameters.values(), start=1):
            if not mine:
                continue
            file = f"model-{number:05d}.safetensors"
            saved = saved_form(module, self.source.read({name: p.dtype for name, p in mine.items()}))
            write_in_parts(folder / file, saved, lambda name, saved=saved: [saved[name]])  # type: ignore[misc]
            places |= dict.fromkeys(saved, file)
            total += sum(tensor.nbytes for tensor in saved.values())
        offloaded = {name for mine in self.parameters.values() for name in mine}
        rest = _untied(
            {name: tensor for name, tensor in module.state_dict().items() if name not in offloaded}
        )
        named = {id(tensor): name for name, tensor in rest.items()}
        saved = saved_form(module, rest)
        parts = lambda name: self._parts(named.get(id(saved[name])), saved[name])  # noqa: E731
        write_in_parts(folder / "model-00000.safetensors", saved, parts)
        places |= dict.fromkeys(saved, "model-00000.safetensors")
        total += sum(tensor.nbytes for tensor in saved.values())
        (folder / INDEX).write_text(
            json.dumps(
                {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, indent=2
            )
            + "\n"
        )
        for settings in ("config", "generation_config"):
            if getattr(module, settings, None) is not None:
                getattr(module, settings).save_pretrained(folder)
        model.processor.save_pretrained(folder)

    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor, Iterable[Tensor]]]:
        """The entries of the module's state dict, read part by part."""
        for name, tensor in module.state_dict().items():
            yield name, tensor, self._parts(name, tensor)

    def _parts(self, name: str | None, tensor: Tensor) -> Iterable[Tensor]:
        """An entry of the state dict, part by part from its file; from memory where no file has it."""
        if name not in self.source.places:
            return [tensor]
        return (part.to(tensor.dtype) for part in self.source.find(name).parts())


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One name for each tensor."""
    seen: dict[int, str] = {}
    return {
        name: tensor for name, tensor in tensors.items() if seen.setdefault(tensor.data_ptr(), name) == name
    }


def read_outside(
    module: nn.Module, places: Mapping[str, Place], offloaded: set[str], device: torch.device
) -> None:
    """Give a skeleton the weights that belong to no block, and the buffers that the checkpoint has.

    Raises:
        NumericalError: one is not finite.
    """
    made: dict[int, nn.Parameter] = {}
    for path, owner in module.named_modules():
        for attribute, parameter in owner._parameters.items():
            name = f"{path}.{attribute}" if path else attribute
            if parameter is None or name in offloaded:
                continue
            place = places[name]
            if id(parameter) not in made:
                if not all(torch.isfinite(part).all() for part in place.parts()):
                    raise NumericalError(
                        f"{name} holds NaN or infinite weights; the checkpoint is damaged, nothing was pruned"
                    )
                made[id(parameter)] = nn.Parameter(
                    place.mapped().to(device, parameter.dtype), parameter.requires_grad
                )
            owner._parameters[attribute] = made[id(parameter)]
            if type(owner) is nn.Embedding and owner.max_norm is None and device.type == "cpu":
                owner.forward = _lookup(owner, place)  # type: ignore[method-assign, assignment]
    for name, buffer in module.named_buffers():
        if name in places:
            buffer.copy_(places[name].read())


def _lookup(owner: nn.Embedding, place: Place) -> Callable[[Tensor], Tensor]:
    """The forward pass of an embedding that reads the rows that it is asked for."""
    loaded = owner.weight.dtype  # a scorer may hold it in fp32, without the digits that loading took

    def look_up(indices: Tensor) -> Tensor:
        wanted, where = torch.unique(indices, return_inverse=True)
        return embedding(where, place.rows(wanted).to(loaded).to(owner.weight.dtype))

    return look_up
