"""The files that a saved model's tensors lie in: safetensors, or one in LAVIS' format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecoflap.storage.file_names import ADAPTER, WEIGHTS_FILE, WEIGHTS_INDEX
from ecoflap.storage.stored_tensor import StoredTensor, raw, stored_tensors


class TensorFiles(Protocol):
    """Tensors in files of one format; a file is opened when it is first needed."""

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""

    def tensor(self, name: str, start: int | None = None, stop: int | None = None) -> Tensor:
        """One tensor on the CPU, or some of its first dimension; it may be mapped from its file.

        Args:
            name: its name.
            start: the first row to read; None for the whole tensor.
            stop: the row behind the last; None for the whole tensor.

        Raises:
            KeyError: if there is no such tensor.
            OSError, ValueError, SafetensorError: if its file is missing or damaged.
        """

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own where the format allows it."""

    def shapes(self) -> dict[str, Tensor]:
        """Each tensor on the meta device, by name, in the order of the files.

        Raises:
            OSError: if a file or a tensor is missing, or a file is damaged or holds tensors of other dtypes.
        """

    def damage(self) -> Iterator[str]:
        """What is wrong with any of the files, as far as it shows without decoding every tensor.

        Raises:
            FileNotFoundError: if a file is missing.
        """

    def close(self) -> None:
        """Close every file."""


def hash_tensors(files: TensorFiles) -> str:
    """A hash of all tensors, bit for bit, with their names, dtypes and shapes.

    It is the same for every form of a checkpoint, and however its tensors are divided among files.

    Raises:
        OSError, ValueError, SafetensorError: if a file is missing or damaged.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in files.names():
        tensor = files.tensor(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(raw(tensor.contiguous()))
    return digest.hexdigest()


class SafetensorFiles:
    """``model.safetensors``, or shards with an index, as ``save_pretrained`` writes them."""

    def __init__(self, folder: Path) -> None:
        """Find the file of every tensor; a single file comes before shards, as in transformers.

        Raises:
            FileNotFoundError: if there is neither.
            ValueError: if the index of shards is damaged.
        """
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        self._file_of: dict[str, str] = {}
        if not (folder / WEIGHTS_FILE).is_file():
            self._file_of = _weight_map(folder / WEIGHTS_INDEX)

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._file_of or self._file(WEIGHTS_FILE).keys())

    def tensor(self, name: str, start: int | None = None, stop: int | None = None) -> Tensor:
        """One tensor, mapped from its file, or some of its first dimension."""
        file = self._file(self._file_of[name] if self._file_of else WEIGHTS_FILE)
        if name not in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
            raise KeyError(name)
        tensor: Tensor = file.get_tensor(name) if start is None else file.get_slice(name)[start:stop]
        return tensor

    def read(self, name: str) -> Tensor:
        """One tensor in memory of its own."""
        return self._stored[name].read()

    def shapes(self) -> dict[str, Tensor]:
        """Each tensor on the meta device, by name, in the order of the files."""
        if lost := next((name for name in sorted(self._file_of) if name not in self._stored), None):
            raise OSError(f"{self._file_of[lost]} has no {lost}, which the index has there; copy it anew")
        return {name: tensor.on_meta() for name, tensor in self._stored.items()}

    def damage(self) -> Iterator[str]:
        """Damaged files, tensors that the index places elsewhere, and other files that may be loaded too.

        ``from_pretrained`` loads every tensor of a file, whatever the index says, and servers such as vLLM
        every ``*.safetensors`` of a folder without an index.
        """
        beside = {path.name for path in self._folder.glob("*.safetensors")}.difference(self._files)
        for file in sorted(beside):
            if not any(fnmatch(file, pattern) for pattern in ADAPTER):
                yield f"{file} is not of this checkpoint, but may be loaded with it; remove it"
        for file in self._files:
            try:
                held = set(self._file(file).keys())
            except SafetensorError as error:
                yield f"{file} cannot be read ({error})"
                continue
            listed = {name for name, other in self._file_of.items() if other == file} or held
            for name in sorted(listed - held):
                yield f"{name}: is not in {file}, where the index has it"
            if listed <= held:  # else it may be the one that is not there, under another name
                for name in sorted(held - listed):
                    yield f"{name}: is in {file}, where the index does not have it"

    def close(self) -> None:
        """Close every file."""
        self._stack.close()

    @cached_property
    def _stored(self) -> dict[str, StoredTensor]:
        """The tensors in the order of the files."""
        found = (stored_tensors(self._folder / file) for file in self._files)
        return {name: one for stored in found for name, one in stored.items()}

    @property
    def _files(self) -> list[str]:
        """The names of the files, sorted."""
        return sorted(set(self._file_of.values())) or [WEIGHTS_FILE]

    def _file(self, file: str) -> Any:
        """The open handle of one file."""
        if file not in self._open:
            handle = safe_open(str(self._folder / file), framework="pt")
            self._open[file] = self._stack.enter_context(handle)
        return self._open[file]


def _weight_map(index: Path) -> dict[str, str]:
    """{tensor: its file} of an index of shards.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ValueError(f"{index} does not say which file has which tensor (weight_map); copy it anew")
    return found


class LavisFile:
    """``model.pth`` in LAVIS' format, mapped; only tensors are read from it."""

    def __init__(self, file: Path) -> None:
        """Map a file.

        Raises:
            OSError: if it is missing or damaged.
        """
        try:
            state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise OSError(f"{file} cannot be read ({error}); copy or save it again") from error
        self._tensors: dict[str, Tensor] = state["model"]

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._tensors)

    def tensor(self, name: str, start: int | None = None, stop: int | None = None) -> Tensor:
        """One tensor, mapped from the file, or some of its first dimension."""
        return self._tensors[name] if start is None else self._tensors[name][start:stop]

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from the file."""
        return self._tensors[name]

    def shapes(self) -> dict[str, Tensor]:
        """Each tensor on the meta device, by name, in the order of the file."""
        return {name: tensor.to("meta") for name, tensor in self._tensors.items()}

    def damage(self) -> Iterator[str]:
        """Nothing that shows without decoding: mapping the file has read its directory."""
        yield from ()

    def close(self) -> None:
        """Nothing stays open but the map, which ends with the last tensor."""
