"""Write a pruned checkpoint and its masks beside it, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ecoflap.masks import FILE_NAME as MASKS
from ecoflap.masks import save_masks
from ecoflap.models.layers import Layer
from ecoflap.models.prunable import PrunableModel
from ecoflap.shards import Checkpoint

FOLDER = "checkpoint"


def save_checkpoint(model: PrunableModel, masks: Mapping[str, Tensor], run_folder: Path) -> str:
    """Save the model into ``run_folder/checkpoint`` and return that folder's name.

    Everything is written into a folder of another name first: an interrupted save leaves nothing that looks like a checkpoint.
    """
    final, partial = run_folder / FOLDER, run_folder / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with model.residence.at_home():
        model.residence.save(model, partial)
        save_masks(partial / MASKS, masks, saved_names(model.layers, partial))
    for file in partial.glob("*.safetensors"):  # their writer makes them private, whatever the umask says
        file.chmod(partial.stat().st_mode & 0o666)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return FOLDER


def saved_names(layers: Sequence[Layer], folder: Path) -> dict[str, str]:
    """{layer: its name in the checkpoint} where the two differ.

    transformers 5 writes many models under the names that their first release had. Which name belongs to which layer is told by the longest
    common ending, and by the weights themselves.

    Raises:
        KeyError: a layer's weights are not in the checkpoint.
    """
    found = {}
    with Checkpoint(folder) as checkpoint:
        names = checkpoint.names()
        unclaimed = set(names).difference(layer.name for layer in layers)
        for layer in layers:
            if layer.name in names:
                continue
            alike = sorted(unclaimed, key=lambda name: _common_ending(name, layer.name), reverse=True)
            name = next((name for name in alike if _common_ending(name, layer.name) and _holds(checkpoint.tensor(name), layer)), None)
            if name is None:
                raise KeyError(f"the weights of {layer.name} are not in the checkpoint that {folder.name} was to become")
            unclaimed.remove(name)
            found[layer.name] = name
    return found


def _common_ending(one: str, other: str) -> int:
    """How many dotted parts two names have in common at their end."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(one.count("."), other.count(".")) + 1)


def _holds(tensor: Tensor, layer: Layer) -> bool:
    return tensor.shape == layer.weight.shape and torch.equal(tensor, layer.weight.detach().cpu().to(tensor.dtype))
