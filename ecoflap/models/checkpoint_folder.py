"""What the safetensors of a checkpoint folder hold."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

from ecoflap.errors import UserError
from ecoflap.models.stored_tensor import StoredTensor, stored_tensors

INDEX = "model.safetensors.index.json"


def stored_in(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint folder by name.

    Raises:
        UserError: it holds no safetensors, or a file of them is missing or damaged.
    """
    single, index = folder / "model.safetensors", folder / INDEX
    if not single.is_file() and not index.is_file():
        raise UserError(f"runtime.offload=disk reads safetensors, and {folder} has none; save the model with save_pretrained first")
    try:
        if single.is_file():
            return stored_tensors(single)
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        of_file = cache(lambda file: stored_tensors(folder / file))
        return {name: of_file(file)[name] for name, file in places.items()}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the safetensors in {folder} can't be read ({error}); copy the checkpoint anew") from error


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the first weights that are numbers, which is what ``from_pretrained`` takes for a checkpoint's own.

    Raises:
        UserError: the folder holds no safetensors.
    """
    return next((tensor.dtype for tensor in stored_in(folder).values() if tensor.dtype.is_floating_point), torch.float32)
