"""Pruning masks on disk: one safetensors file, one bit per weight.

Bit order: the mask is flattened in the saved parameter's own order and packed eight to a byte, the first
weight in the highest bit; the last byte is padded with zeros. The shapes are in the file's metadata, as JSON.
A set bit is a weight that was kept.

A mask has the name and shape of a tensor in the checkpoint. An expert that shares a parameter with others, or
a projection that the checkpoint joins with others, may be some rows of one, or several, as where gate and up
are apart; the metadata say which.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ecoflap.storage.file_names import MASKS
from ecoflap.storage.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "ecoflap-masks-1"


class Rows(NamedTuple):
    """Some of the first dimension of a tensor in the checkpoint.

    Attributes:
        name: Name of the tensor.
        start: The first one; None for the whole tensor.
        stop: The one behind the last; None for the whole tensor.
    """

    name: str
    start: int | None
    stop: int | None


def save_masks(
    path: Path,
    masks: Mapping[str, Tensor],
    names: Mapping[str, str] | None = None,
    parts: Mapping[str, Sequence[Rows]] | None = None,
) -> None:
    """Write masks to one file atomically; the same masks always make the same bytes.

    Args:
        path: The file to write; its folder is created.
        masks: Parameter name -> bool tensor in the shape and orientation of the saved parameter, True where
            the weight is kept.
        names: Parameter name -> its name in the checkpoint where the two differ; masks are stored under
            the latter.
        parts: Layer -> where its weights are in the checkpoint, for layers that are not whole tensors of it.

    Raises:
        TypeError: if a mask is not a bool tensor.
    """
    from ecoflap.storage.stored_tensor import write_in_parts

    names = dict(names or {})
    packed = {names.get(name, name): pack(name, mask) for name, mask in masks.items()}
    shapes = {names.get(name, name): list(mask.shape) for name, mask in masks.items()}
    metadata = {"format": FORMAT, "shapes": json.dumps(shapes), "names": json.dumps(names)}
    if parts:
        metadata["parts"] = json.dumps(dict(parts))
    with replacing(Path(path)) as temporary:
        write_in_parts(temporary, packed, lambda name: [packed[name]], metadata)


def load_masks(path: Path, loaded: bool = False) -> dict[str, Tensor]:
    """Read every mask of a file as bool tensors on the CPU, True where the weight is kept.

    Args:
        path: The file, or the folder of the checkpoint.
        loaded: Name each mask as the loaded model names its parameter, which transformers 5 may save under
            another name. Experts that share a parameter, and layers whose weights the checkpoint joins or
            divides, keep the names of the checkpoint.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a mask file.
    """
    with MaskFile(path) as file:
        in_model = {stored: name for name, stored in file.names.items()} if loaded else {}
        return {in_model.get(name, name): file[name] for name in file.shapes}


class PackedMasks(MutableMapping[str, "Tensor"]):
    """Masks by parameter name, one bit per weight in memory; each is unpacked when it is read."""

    def __init__(self) -> None:
        self._packed: dict[str, tuple[Tensor, list[int]]] = {}

    @classmethod
    def ordered(cls, masks: Mapping[str, Tensor], names: Sequence[str]) -> PackedMasks:
        """The masks in another order."""
        result = cls()
        for name in names:
            result[name] = masks[name]
        return result

    def __setitem__(self, name: str, mask: Tensor) -> None:
        self._packed[name] = (pack(name, mask), list(mask.shape))

    def __getitem__(self, name: str) -> Tensor:
        return unpack(*self._packed[name])

    def __delitem__(self, name: str) -> None:
        del self._packed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


class MaskFile:
    """An open mask file that unpacks one mask at a time, for masks that do not fit in memory together.

    Attributes:
        shapes: Parameter name in the checkpoint -> shape of its mask.
        names: Parameter name in the model -> its name in the checkpoint, where the two differ.
        parts: Layer -> where its weights are in the checkpoint, for layers that are not whole tensors of it.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, or the one in a checkpoint's folder, and read its shapes.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a mask file.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path) / MASKS if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no mask file at {path}: masks are saved beside the pruned checkpoint as {MASKS}"
            )
        try:
            self._file: Any = safe_open(str(path), framework="pt")
        except SafetensorError as error:
            raise ValueError(
                f"{path} cannot be read as a mask file ({error}): it is damaged or not ours; prune again to"
                " write it anew"
            ) from error
        self._path = path
        metadata: dict[str, str] = self._file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} is not a mask file of this version: its format is {metadata.get('format')!r},"
                f" expected {FORMAT!r}"
            )
        try:
            self.shapes: dict[str, list[int]] = dict(json.loads(metadata["shapes"]))
            self.names: dict[str, str] = dict(json.loads(metadata.get("names", "{}")))
            parts = dict(json.loads(metadata.get("parts", "{}")))
            self.parts = {layer: [Rows(*rows) for rows in found] for layer, found in parts.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged: its header can't be read ({error!r}); prune again to write it anew"
            ) from error
        self._last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        """The bool mask of one tensor of the checkpoint, in its shape; the last one stays in memory.

        Raises:
            ValueError: if the file names its tensors otherwise than its shapes.
        """
        from safetensors import SafetensorError

        if self._last is None or self._last[0] != name:
            try:
                packed = self._file.get_tensor(name)
            except SafetensorError as error:
                raise ValueError(
                    f"{self._path} is damaged: it lacks the mask of {name} ({error}); prune again to write it"
                    " anew"
                ) from error
            self._last = name, unpack(packed, self.shapes[name])
        return self._last[1]

    def places(self, layer: str) -> list[Rows]:
        """Where the weights of a layer are in the checkpoint."""
        return self.parts.get(layer) or [Rows(self.names.get(layer, layer), None, None)]

    def __enter__(self) -> MaskFile:
        """Keep the file open for the duration of a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.__exit__(None, None, None)


def pack(name: str, mask: Tensor) -> Tensor:
    """Pack a bool mask of any shape into uint8 [ceil(weights / 8)]."""
    import numpy as np
    import torch

    if mask.dtype != torch.bool:
        raise TypeError(
            f"the mask of {name} has dtype {mask.dtype}, expected torch.bool with True for a kept weight"
        )
    return torch.from_numpy(np.packbits(mask.detach().cpu().flatten().numpy()))


def unpack(packed: Tensor, shape: list[int]) -> Tensor:
    """Unpack uint8 [ceil(weights / 8)] into a bool mask of the given shape."""
    import numpy as np
    import torch

    bits = np.unpackbits(packed.numpy(), count=math.prod(shape))
    return torch.from_numpy(bits).view(torch.bool).reshape(shape)
