"""Write a pruned checkpoint and its masks beside it, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ecoflap.masks import FILE_NAME as MASKS
from ecoflap.masks import save_masks
from ecoflap.models.prunable import PrunableModel

FOLDER = "checkpoint"


def save_checkpoint(model: PrunableModel, masks: Mapping[str, Tensor], run_folder: Path) -> str:
    """Save the model into ``run_folder/checkpoint`` and return that folder's name.

    Everything is written into a folder of another name first: an interrupted save leaves nothing that looks like a checkpoint.
    """
    final, partial = run_folder / FOLDER, run_folder / f"{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save(partial)
    save_masks(partial / MASKS, masks)
    for file in partial.glob("*.safetensors"):  # their writer makes them private, whatever the umask says
        shutil.copymode(partial / "config.json", file)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return FOLDER
