"""Where a checkpoint has the weights of a model's layers.

transformers 5 writes many models in the form of their first release: under other names, with the experts of a
layer apart, or with queries, keys and values in one tensor.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ecoflap.models.core.layers import Layer, by_parameter
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.conversion import names_by_tensor, saved_form
from ecoflap.storage.masks import Rows
from ecoflap.storage.saved_model import open_checkpoint
from ecoflap.storage.tensor_files import TensorFiles


@dataclass(frozen=True)
class Converted:
    """Parameters that are converted when they are saved, and the layers in them.

    Attributes:
        module: the model.
        shapes: {parameter: its shape}, of all that are converted together.
        layers: the layers to prune that are in these parameters.
        stored: names of the tensors in the checkpoint.
    """

    module: nn.Module
    shapes: Mapping[str, torch.Size]
    layers: Sequence[Layer]
    stored: Container[str]

    def rows(self) -> dict[str, list[Rows]]:
        """Where the checkpoint has the weights of each layer.

        Stand-ins for the parameters, in which each weight is the number of its layer, are converted as the
        parameters are when they are saved.

        Raises:
            KeyError: if the checkpoint mixes the weights of layers in a row.
        """
        numbers = {
            name: torch.full(shape, -1, dtype=torch.int32, device="cpu")
            for name, shape in self.shapes.items()
        }
        for number, layer in enumerate(self.layers):
            layer.part(numbers[layer.parameter_name]).fill_(number)
        found: dict[str, list[Rows]] = {}
        for full, tensor in self._saved(numbers).items():
            rows = tensor.reshape(len(tensor), -1)
            if not torch.equal(rows.amin(dim=1), rows.amax(dim=1)):
                raise KeyError(f"{full} of the checkpoint mixes the layers of {', '.join(self.shapes)}")
            owners, counts = torch.unique_consecutive(rows[:, 0], return_counts=True)
            start = 0
            for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
                if owner >= 0:
                    found.setdefault(self.layers[owner].name, []).append(Rows(full, start, start + count))
                start += count
        return found

    def masks(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The masks of the tensors in the checkpoint that hold the layers, by name, on the CPU.

        Args:
            masks: {layer: bool mask as the weight is stored}; layers without one are kept.
        """
        whole = {
            name: torch.ones(shape, dtype=torch.bool, device="cpu") for name, shape in self.shapes.items()
        }
        for layer in self.layers:
            if layer.name in masks:
                layer.part(whole[layer.parameter_name]).copy_(masks[layer.name])
        return self._saved(whole)

    def _saved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors for the parameters, in the form of the checkpoint, which has one name of tied ones."""
        tied = {name: names for names in names_by_tensor(self.module) for name in names}
        every = {other: tensor for name, tensor in tensors.items() for other in tied[name]}
        saved = saved_form(self.module, every)
        return {name: tensor for name, tensor in saved.items() if name in self.stored}


@dataclass(frozen=True)
class Places:
    """Where a checkpoint has the weights of a model's layers.

    Attributes:
        names: {layer: its name in the checkpoint}, of whole tensors where the two differ.
        parts: {layer: the rows that hold its weights}, of converted layers.
        converted: the converted layers, with those that are converted together.
    """

    names: dict[str, str]
    parts: dict[str, list[Rows]]
    converted: list[Converted]


def saved_places(model: PrunableModel, folder: Path) -> Places:
    """Find the weights of all layers in a checkpoint of a model.

    Raises:
        KeyError: if a layer's weights are not in the checkpoint.
    """
    with open_checkpoint(folder) as checkpoint:
        names, converted = _renamed(model, checkpoint)
        stored = set(checkpoint.names())
    for name, experts in by_parameter([layer for layer in model.layers if layer.is_expert]):
        converted.append(Converted(model.module, {name: experts[0].parameter.shape}, experts, stored))
    parts: dict[str, list[Rows]] = {}
    for one in converted:
        parts |= one.rows()
        if lost := next((layer.name for layer in one.layers if layer.name not in parts), None):
            raise KeyError(f"the weights of {lost} are not in it")
    return Places(names, parts, converted)


def _renamed(model: PrunableModel, checkpoint: TensorFiles) -> tuple[dict[str, str], list[Converted]]:
    """The layers that are whole tensors under other names, and those that were converted, block by block.

    The longest common suffix, and then the weights themselves, tell which name belongs to which layer.
    """
    names: dict[str, str] = {}
    converted: list[Converted] = []
    stored = set(checkpoint.names())
    unclaimed = stored.difference(layer.name for layer in model.layers)
    for block in (block for tower in model.towers for block in tower.blocks):
        others = [layer for layer in block.layers if not layer.is_expert and layer.name not in stored]
        if not others:
            continue
        with model.placement.using(block):
            for layer in others:
                if (name := _saved_name(layer, unclaimed, checkpoint)) is not None:
                    names[layer.name] = name
                    unclaimed.remove(name)
        if joined := [layer for layer in others if layer.name not in names]:
            matrices = block.module.named_parameters(block.name)
            shapes = {name: matrix.shape for name, matrix in matrices if matrix.ndim == 2}
            converted.append(Converted(model.module, shapes, joined, stored))
    return names, converted


def _saved_name(layer: Layer, names: Iterable[str], checkpoint: TensorFiles) -> str | None:
    """The one of some names under which the checkpoint holds a layer's weights; None if there is none."""
    alike = sorted(names, key=lambda name: _common_ending(name, layer.name), reverse=True)
    found = (name for name in alike if _common_ending(name, layer.name))
    return next((name for name in found if _holds(checkpoint.tensor(name), layer)), None)


def _common_ending(one: str, other: str) -> int:
    """Number of dotted parts that two names have in common at their end."""
    pairs = list(zip(reversed(one.split(".")), reversed(other.split(".")), strict=False))
    return next((count for count, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _holds(tensor: Tensor, layer: Layer) -> bool:
    if tensor.shape != layer.weight.shape:
        return False
    return torch.equal(tensor, layer.weight.detach().cpu().to(tensor.dtype))
