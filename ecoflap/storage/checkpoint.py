"""Write a pruned checkpoint with its masks atomically."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.storage.bitmask.convert import rewrite
from ecoflap.storage.bitmask.forms import DENSE
from ecoflap.storage.disk_space import writing
from ecoflap.storage.file_names import CHECKPOINT, MASKS, WEIGHTS_FILE
from ecoflap.storage.files import remove
from ecoflap.storage.masks import PackedMasks, Rows, save_masks
from ecoflap.storage.saved_places import saved_places


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
    remove(final)
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
    """Write the masks of a checkpoint under its own names, and in the form that it has of the weights.

    Raises:
        UserError: if the model's own ``save_pretrained`` wrote no safetensors with the pruned layers.
    """
    try:
        places = saved_places(model, folder)
    except (FileNotFoundError, KeyError) as error:
        lacks = error.args[0] if isinstance(error, KeyError) else f"there is no {WEIGHTS_FILE}"
        raise UserError(
            f"what {type(model.module).__name__}.save_pretrained writes can't have masks beside it: {lacks};"
            " save it without them, in Python by giving result.prunable"
        ) from error
    whole = {layer.name for layer in model.layers}.difference(places.parts)
    saved, parts = PackedMasks(), dict[str, list[Rows]]()
    for name in filter(whole.__contains__, masks):
        saved[name] = masks[name]
    for converted in places.converted:
        rows = {layer.name: places.parts[layer.name] for layer in converted.layers if layer.name in masks}
        pruned = {one.name for places in rows.values() for one in places}
        for full, mask in converted.masks(masks).items() if rows else ():
            if full in pruned:
                saved[full] = mask
        parts |= rows
    save_masks(folder / MASKS, saved, places.names, parts)
