"""Tensors that transformers computes from stored ones when it loads a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Size, Tensor, nn

from ecoflap.errors import UserError
from ecoflap.storage.stored_tensor import PART, StoredTensor

Sources = tuple[tuple[str, StoredTensor], ...]
"""(the converter's pattern, stored tensor) of each tensor that goes into a conversion."""


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor that transformers computes from stored ones: merged experts, or a part of a fused projection.

    Attributes:
        name: its name in the model.
        module: the model, whose config some conversions read.
        converter: the conversion of transformers.
        first: name of the first tensor that the conversion makes.
        sources: what goes in.
    """

    name: str
    module: nn.Module
    converter: Any
    first: str
    sources: Sources

    def read(self) -> Tensor:
        """The whole tensor; where it merges experts, one expert at a time is in memory beside it."""
        pieces = self._pieces()
        if len(pieces) == 1:
            return self._made(self.sources).contiguous()
        first = self._made(pieces[0])
        whole = first.new_empty((len(pieces), *first.shape[1:]))
        for place, sources in enumerate(pieces):
            whole[place] = self._made(sources)[0] if place else first[0]
        return whole

    mapped = read

    def rows(self, indices: Tensor) -> Tensor:
        """Some of its rows, [indices, ...]."""
        return self.read()[indices]

    def parts(self) -> Iterator[Tensor]:
        """The whole tensor, flat, in parts of a few megabytes."""
        for sources in self._pieces():
            flat = self._made(sources).reshape(-1)
            yield from flat.split(PART // flat.dtype.itemsize)

    def _made(self, sources: Sources) -> Tensor:
        """What the conversion makes of some sources."""
        return convert(self.module, self.converter, self.first, sources)[self.name]

    def _pieces(self) -> list[Sources]:
        """The sources of each entry of the first dimension, where these are merged expert by expert.

        One piece with all sources, where the conversion does anything else.
        """
        merge, *others = self.converter.operations
        by_pattern: dict[str, list[StoredTensor]] = {}
        for pattern, tensor in self.sources:
            by_pattern.setdefault(pattern, []).append(tensor)
        merged = type(merge).__name__ == "MergeModulelist" and merge.dim == 0
        inside = all(type(one).__name__ == "Concatenate" and one.dim > 0 for one in others)
        if not (merged and inside and len({len(tensors) for tensors in by_pattern.values()}) == 1):
            return [self.sources]
        return [
            tuple(zip(by_pattern, tensors, strict=True)) for tensors in zip(*by_pattern.values(), strict=True)
        ]


CheckpointTensor = StoredTensor | ConvertedTensor


def converted_shapes(
    path: str, module: Any, converter: Any, first: str, sources: Iterable[tuple[str, StoredTensor]]
) -> dict[str, Size]:
    """The shapes of what a converter makes from stored tensors, of which nothing is read.

    Args:
        path: hub id or folder, for the message.
        module: the model.
        converter: the conversion of transformers.
        first: name of the first tensor that it makes.
        sources: the converter's pattern and the stored tensor, for each tensor that goes in.

    Raises:
        UserError: if one of them is missing, or has another shape than the others.
    """
    try:
        made = convert(module, converter, first, sources, only_shapes=True)
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        said = str(error).partition("\n")[0].strip()
        raise UserError(
            f"the tensors of model.path={path} that make up {first} don't fit together ({said}); the"
            " checkpoint is damaged or of another model"
        ) from error
    return {name: tensor.shape for name, tensor in made.items()}


def convert(
    module: Any,
    converter: Any,
    first: str,
    sources: Iterable[tuple[str, StoredTensor]],
    only_shapes: bool = False,
) -> dict[str, Tensor]:
    """The tensors that a converter makes from stored ones, by their names in the model.

    Args:
        module: the model.
        converter: the conversion of transformers.
        first: name of the first tensor that it makes.
        sources: the converter's pattern and the stored tensor, for each tensor that goes in.
        only_shapes: read nothing, and make tensors on the meta device.
    """
    one = deepcopy(converter)
    for pattern, tensor in sources:
        one.add_tensor(first, tensor.name, pattern, tensor.on_meta if only_shapes else tensor.read)
    made = one.convert(first, model=module, config=module.config)
    made = made[0] if isinstance(made, tuple) else made  # with its errors, in 5.0
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}
