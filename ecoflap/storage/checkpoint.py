"""Write a pruned checkpoint with its masks atomically."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer, by_parameter, whole_mask
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.conversion import saved_form
from ecoflap.storage.bitmask.convert import rewrite
from ecoflap.storage.bitmask.forms import DENSE
from ecoflap.storage.disk_space import writing
from ecoflap.storage.file_names import CHECKPOINT, MASKS
from ecoflap.storage.masks import PackedMasks, Rows, save_masks
from ecoflap.storage.saved_model import open_checkpoint
from ecoflap.storage.tensor_files import TensorFiles


def save_checkpoint(
    model: PrunableModel, masks: Mapping[str, Tensor], run_folder: Path, form: str = DENSE
) -> str:
    """Save the model and its masks into ``run_folder/checkpoint``.

    Everything is written into a temporary folder first, so that an interrupted save leaves nothing that
    resembles a checkpoint.

    Args:
        model: the pruned model.
        masks: its masks.
        run_folder: folder of the run.
        form: dense, bitmask, or coded.

    Returns:
        The name of the folder.

    Raises:
        UserError: if the disk is full.
    """
    final, partial = run_folder / CHECKPOINT, run_folder / f"{CHECKPOINT}.partial"
    write_checkpoint(model, masks, partial, form)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return CHECKPOINT


def write_checkpoint(
    model: PrunableModel, masks: Mapping[str, Tensor] | None, folder: Path, form: str = DENSE
) -> None:
    """Write a model, and its masks where there are some, into a folder.

    A save that fails leaves no folder. One that is killed leaves an unfinished one; the bitmask shards that
    it has written are kept if the model is saved there again.

    Args:
        model: the pruned model.
        masks: its masks; None for a model that was not pruned.
        folder: the folder; what it holds is replaced.
        form: dense (what ``from_pretrained`` loads), bitmask, or coded.

    Raises:
        UserError: if the disk is full, or the model can't be saved in this form.
    """
    if form == DENSE:
        _write_dense(model, masks, folder)
        return
    dense = folder.with_name(f"{folder.name}.dense")
    try:
        _write_dense(model, masks, dense)
        rewrite(dense, folder, form)
    except FileNotFoundError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"{model.name} saves no safetensors, so there is nothing to write as {form}; use model.save=dense"
        ) from error
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(dense, ignore_errors=True)


def _write_dense(model: PrunableModel, masks: Mapping[str, Tensor] | None, folder: Path) -> None:
    """Write what ``from_pretrained`` loads, and the masks where there are some, into a new folder.

    Raises:
        UserError: if the disk is full.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with writing("the checkpoint", folder.parent):
            folder.mkdir(parents=True)
            with model.placement.all_in_place():
                model.placement.save(model, folder)
            if masks is not None:
                _write_masks(model, masks, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for file in folder.glob("*.safetensors"):  # safetensors makes them private and ignores the umask
        file.chmod(folder.stat().st_mode & 0o666)


def _write_masks(model: PrunableModel, masks: Mapping[str, Tensor], folder: Path) -> None:
    """Write the masks of a checkpoint under its own names, and in the parts that it has of experts."""
    plain = {layer.name for layer in model.layers if not layer.is_expert and layer.name in masks}
    saved, parts = PackedMasks(), dict[str, list[Rows]]()
    for name in filter(plain.__contains__, masks):
        saved[name] = masks[name]
    for name, experts in by_parameter([layer for layer in model.layers if layer.is_expert]):
        masked = [layer for layer in experts if layer.name in masks]
        if not masked:
            continue
        rows = saved_rows(model.module, name, masked)
        pruned = {one.name for places in rows.values() for one in places}
        for full, mask in saved_form(model.module, {name: whole_mask(masked, masks)}).items():
            if full in pruned:
                saved[full] = mask
        parts |= rows
    save_masks(folder / MASKS, saved, saved_names(model, folder), parts)


def saved_rows(module: nn.Module, name: str, experts: Sequence[Layer]) -> dict[str, list[Rows]]:
    """Where the checkpoint has the weights of experts that share a parameter.

    A stand-in for the parameter, in which each weight is the number of its expert, is converted as the
    parameter is when it is saved.

    Args:
        module: the model.
        name: the parameter's name.
        experts: layers of the parameter.

    Raises:
        KeyError: if the checkpoint mixes the weights of experts in a row.
    """
    shape = experts[0].parameter.shape
    numbers = torch.empty(shape, dtype=torch.int32)
    for number, part in enumerate(numbers.view(experts[0].expert[1], -1, shape[-1])):
        part.fill_(number)
    found: dict[int, list[Rows]] = {}
    for full, tensor in saved_form(module, {name: numbers}).items():
        rows = tensor.flatten(1)
        if not torch.equal(rows.amin(dim=1), rows.amax(dim=1)):
            raise KeyError(f"{full} of the checkpoint mixes the experts of {name}")
        owners, counts = torch.unique_consecutive(rows[:, 0], return_counts=True)
        start = 0
        for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
            found.setdefault(owner, []).append(Rows(full, start, start + count))
            start += count
    return {layer.name: found[layer.expert[0]] for layer in experts}


def saved_names(model: PrunableModel, folder: Path) -> dict[str, str]:
    """The name of each layer that is a whole parameter in the checkpoint, where the two differ.

    transformers 5 writes many models under the names of their first release. The longest common suffix, and
    then the weights themselves, tell which name belongs to which layer.

    Raises:
        KeyError: if a layer's weights are not in the checkpoint.
    """
    found = {}
    with open_checkpoint(folder) as checkpoint:
        names = checkpoint.names()
        unclaimed = set(names).difference(layer.name for layer in model.layers)
        for block in (block for tower in model.towers for block in tower.blocks):
            renamed = [layer for layer in block.layers if not layer.is_expert and layer.name not in names]
            if not renamed:
                continue
            with model.placement.using(block):
                for layer in renamed:
                    found[layer.name] = _saved_name(layer, unclaimed, checkpoint, folder)
                    unclaimed.remove(found[layer.name])
    return found


def _saved_name(layer: Layer, names: Iterable[str], checkpoint: TensorFiles, folder: Path) -> str:
    """The one of some names under which the checkpoint holds a layer's weights."""
    alike = sorted(names, key=lambda name: _common_ending(name, layer.name), reverse=True)
    for name in alike:
        if _common_ending(name, layer.name) and _holds(checkpoint.tensor(name), layer):
            return name
    raise KeyError(f"the weights of {layer.name} are not in the checkpoint that {folder.name} was to become")


def _common_ending(one: str, other: str) -> int:
    """Number of dotted parts that two names have in common at their end."""
    pairs = list(zip(reversed(one.split(".")), reversed(other.split(".")), strict=False))
    return next((count for count, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _holds(tensor: Tensor, layer: Layer) -> bool:
    if tensor.shape != layer.weight.shape:
        return False
    return torch.equal(tensor, layer.weight.detach().cpu().to(tensor.dtype))
