"""Weights on the disk: read block by block from a checkpoint's safetensors shards, and written block by block into new ones."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ecoflap.errors import NumericalError, UserError
from ecoflap.models.residence import Away, Saves

FORMAT_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
INDEX = "model.safetensors.index.json"


class Shards:
    """The safetensors files of a checkpoint folder, and the files of blocks that were changed since.

    Files are opened for one block and closed again: what a closed file had in memory is free at once.
    """

    def __init__(self, folder: Path, work: Path, names: Mapping[str, str]) -> None:
        """``names``: parameter -> its name in the checkpoint."""
        self.work, self.names = work, dict(names)
        self.files = {name: folder / file for name, file in weight_map(folder).items()}
        self.changed: dict[str, Path] = {}  # parameter -> the file that holds it now

    def read(self, names: Mapping[str, torch.dtype], copy: bool = True) -> dict[str, Tensor]:
        """Some parameters; without ``copy``, views of their files where the dtype is the file's, which hold nothing once they are let go."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self.changed.get(name) or self.files[self.names[name]], []).append(name)
        tensors = {}
        for path, inside in wanted.items():
            with safe_open(str(path), framework="pt") as file:
                for name in inside:
                    stored = file.get_tensor(name if name in self.changed else self.names[name])
                    tensors[name] = stored.to(names[name], copy=copy)
        return tensors

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a block into a shard of its own."""
        self.work.mkdir(parents=True, exist_ok=True)
        path, beside = self.work / f"{block}.safetensors", self.work / f"{block}.partial"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, metadata={"format": "pt"})
        beside.replace(path)
        self.changed.update(dict.fromkeys(tensors, path))


class OnDisk(Away):
    """Blocks live in safetensors shards."""

    source: Shards  # type: ignore[assignment]

    def save(self, model: Saves, folder: Path) -> None:
        """Write new shards, one per block and one for all the rest, with their index; the whole model is never in memory."""
        module = model.module
        places: dict[str, str] = {}
        total = 0
        for number, (block, mine) in enumerate(self.parameters.items(), start=1):
            if not mine:
                continue
            file = f"model-{number:05d}.safetensors"
            done = self.source.changed.get(next(iter(mine)))
            if done is not None:
                shutil.copyfile(done, folder / file)
            else:
                save_file(self.source.read({name: p.dtype for name, p in mine.items()}), folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(mine, file)
            total += sum(p.numel() * p.dtype.itemsize for p in self.parameters[block].values())
        rest = _untied({name: tensor for name, tensor in module.state_dict().items() if name not in places})
        write_one_by_one(folder / "model-00000.safetensors", rest, lambda name: self._view(name, rest[name]))
        places |= dict.fromkeys(rest, "model-00000.safetensors")
        total += sum(tensor.numel() * tensor.dtype.itemsize for tensor in rest.values())
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, indent=2) + "\n")
        for settings in ("config", "generation_config"):
            if getattr(module, settings, None) is not None:
                getattr(module, settings).save_pretrained(folder)
        model.processor.save_pretrained(folder)

    def _send_away(self, name: str) -> None:
        """Let a block go, and what the C allocator would keep of it."""
        super()._send_away(name)
        with suppress(OSError, AttributeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)

    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The entries of the module's state dict, each read for the moment."""
        for name, tensor in module.state_dict().items():
            yield name, self._view(name, tensor)

    def _view(self, name: str, tensor: Tensor) -> Tensor:
        """An entry of the state dict from its file; from the module where no file has it."""
        return self.source.read({name: tensor.dtype}, copy=False)[name] if name in self.source.names else tensor


def write_one_by_one(path: Path, shapes: Mapping[str, Tensor], tensor: Callable[[str], Tensor]) -> None:
    """Write a safetensors file of which one tensor at a time is in memory; the format's own writer copies all of them first.

    Args:
        path: the file.
        shapes: {name: something of the tensor's shape and dtype}.
        tensor: gives a tensor by its name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, like in shapes.items():
        start, end = end, end + like.numel() * like.dtype.itemsize
        header[name] = {"dtype": FORMAT_NAMES[like.dtype], "shape": list(like.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            file.write(tensor(name).detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One name for each tensor."""
    seen: dict[int, str] = {}
    return {name: tensor for name, tensor in tensors.items() if seen.setdefault(tensor.data_ptr(), name) == name}


def weight_map(folder: Path) -> dict[str, str]:
    """{tensor: file} of a checkpoint folder.

    Raises:
        UserError: it holds no safetensors.
    """
    if (folder / "model.safetensors").is_file():
        with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
            return dict.fromkeys(file.keys(), "model.safetensors")
    if (folder / INDEX).is_file():
        found: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return found
    raise UserError(f"runtime.offload=disk reads safetensors, and {folder} has none; save the model with save_pretrained first")


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the first weights that are numbers, which is what ``from_pretrained`` takes for a checkpoint's own.

    Raises:
        UserError: the folder holds no safetensors.
    """
    for name, file in weight_map(folder).items():
        with safe_open(str(folder / file), framework="pt") as handle:
            if (dtype := handle.get_tensor(name).dtype).is_floating_point:
                return dtype  # type: ignore[no-any-return]
    return torch.float32


def checkpoint_names(module: nn.Module, stored: Mapping[str, str]) -> dict[str, str]:
    """Parameter -> its name in the checkpoint: the same, or with the prefix of the model without head more or less.

    Raises:
        UserError: a parameter is not there under such a name.
    """
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    found: dict[str, str] = {}
    for tied in _names_by_tensor(module):
        candidates = [form for name in tied for form in (name, prefix + name, name.removeprefix(prefix))]
        place = next((form for form in candidates if form in stored), None)
        if place is None:
            raise UserError(
                f"runtime.offload=disk: the checkpoint has no {tied[0]}; its weights have other names than this transformers' model. "
                "Load it once and save it anew, or use runtime.offload=cpu"
            )
        found |= dict.fromkeys(tied, place)
    return found


def _names_by_tensor(module: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def read_outside(module: nn.Module, folder: Path, names: Mapping[str, str], away: set[str], device: torch.device) -> None:
    """Give a skeleton the weights that belong to no block. On the CPU they are views of their files, so that only what is used is in memory.

    Raises:
        NumericalError: one is not finite.
    """
    files, made = weight_map(folder), dict[int, nn.Parameter]()
    for path, owner in module.named_modules():
        for attribute, parameter in owner._parameters.items():
            name = f"{path}.{attribute}" if path else attribute
            if parameter is None or name in away:
                continue
            if id(parameter) not in made:
                file = str(folder / files[names[name]])
                _check_finite(file, names[name], name)
                with safe_open(file, framework="pt") as handle:
                    tensor = handle.get_tensor(names[name])
                made[id(parameter)] = nn.Parameter(tensor.to(device, parameter.dtype), parameter.requires_grad)
            owner._parameters[attribute] = made[id(parameter)]


def _check_finite(file: str, stored: str, name: str) -> None:
    """Look through a view of its own, in parts: what it had in memory is free afterwards."""
    with safe_open(file, framework="pt") as handle:
        for part in handle.get_tensor(stored).flatten().split(2**22):
            if not torch.isfinite(part).all():
                raise NumericalError(f"{name} holds NaN or infinite weights; the checkpoint is damaged, nothing was pruned")
