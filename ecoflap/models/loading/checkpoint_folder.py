"""The files of a checkpoint folder: its settings, and the contents of its safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ecoflap.errors import UnavailableError, UserError
from ecoflap.storage.file_names import BITMASK_INDEX, BITMASK_SHARDS, WEIGHTS_FILE, WEIGHTS_INDEX
from ecoflap.storage.files import TEMPORARY
from ecoflap.storage.stored_tensor import StoredTensor, read_header, stored_tensors

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def local_settings(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint folder.

    Raises:
        UserError: if there is none, or it can't be read.
    """
    if not (folder / "config.json").is_file():
        found = sorted(path.parent.name for path in folder.glob("*/config.json"))
        inside = [name for name in found if not name.startswith(TEMPORARY) and ".partial" not in name]
        advice = "give a folder that save_pretrained wrote, or copy the checkpoint anew"
        if inside:
            advice = f"give {folder / inside[0]}"
        is_adapter = (folder / "adapter_config.json").is_file()
        adapter = " but an adapter, which has to be merged into its model first" if is_adapter else ""
        raise UserError(f"model.path={folder} has no config.json{adapter}; {advice}")
    return _read_json(folder / "config.json")


def complete_weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, complete.

    Empty if its weights are in PyTorch's format, or in a bitmask checkpoint.

    Raises:
        UnavailableError: if there are no weights.
        UserError: if a file of them is missing, damaged or truncated.
    """
    single, index = folder / WEIGHTS_FILE, folder / WEIGHTS_INDEX
    if not single.is_file() and not index.is_file():
        if any((folder / name).is_file() for name in (*PICKLES, BITMASK_INDEX)):
            return []
        found = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS)
        instead = f", only {found[0]}" if found else ""
        raise UnavailableError(
            f"model.path={folder} has no weights: no {WEIGHTS_FILE} and no {WEIGHTS_INDEX}{instead}; save the"
            " model there with save_pretrained"
        )
    if single.is_file():
        tensors_in(folder, single)
        return [single]
    file_of = _read_json(index).get("weight_map")
    if not isinstance(file_of, Mapping) or not file_of:
        raise UserError(f"{WEIGHTS_INDEX} of model.path={folder} has no weight_map; copy it anew")
    files = sorted({str(file) for file in file_of.values()})
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"model.path={folder} lacks {missing[0]} ({len(missing)} of {len(files)} files that its"
            f" {WEIGHTS_INDEX} names); copy it there"
        )
    inside = {file: tensors_in(folder, folder / file) for file in files}
    lost = [name for name, file in file_of.items() if name not in inside[file]]
    if lost:
        raise UserError(
            f"{file_of[lost[0]]} of model.path={folder} has no {lost[0]}, which its {WEIGHTS_INDEX} looks for"
            " there; copy both anew"
        )
    return [folder / file for file in files]


def tensors_in(path: str | Path, file: Path) -> Mapping[str, Any]:
    """What the header of a complete safetensors file says of each tensor.

    Args:
        path: hub id or folder of the checkpoint, for the message.
        file: the file.

    Raises:
        UserError: if it is damaged or truncated.
    """
    try:
        return read_header(file)[1]
    except OSError as error:
        raise UserError(f"model.path={path}: {error}; copy the file anew") from error


def is_bitmask(folder: Path) -> bool:
    """Whether the weights of a checkpoint folder are in a bitmask checkpoint, finished or not."""
    has_dense = (folder / WEIGHTS_FILE).is_file() or (folder / WEIGHTS_INDEX).is_file()
    return not has_dense and ((folder / BITMASK_INDEX).is_file() or any(folder.glob(BITMASK_SHARDS)))


def stored_in(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint folder by name.

    Raises:
        UserError: if it holds no safetensors, or a file of them is missing or damaged.
    """
    files = complete_weight_files(folder)
    if is_bitmask(folder):
        raise UserError(
            f"runtime.offload=disk reads dense safetensors, and {folder} holds a bitmask checkpoint; write it"
            f" dense first: ecoflap convert {folder} OUT --to dense"
        )
    if not files:
        raise UserError(
            f"runtime.offload=disk reads safetensors, and {folder} has none; save the model with"
            " save_pretrained first"
        )
    try:
        return {name: tensor for file in files for name, tensor in stored_tensors(file).items()}
    except OSError as error:
        raise UserError(
            f"the weights in model.path={folder} can't stay on the disk: {error}; use runtime.offload=cpu"
        ) from error


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the first floating-point weights: that of the checkpoint, to ``from_pretrained``.

    It looks into the first file, in the order of the names.

    Raises:
        UserError: if the folder holds no safetensors.
    """
    every = stored_in(folder)
    first = min((tensor.path for tensor in every.values()), default=None)
    dtypes = (tensor.dtype for _, tensor in sorted(every.items()) if tensor.path == first)
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file.name} of model.path={file.parent} is not valid JSON ({error}); copy it anew"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file.name} of model.path={file.parent} holds no settings; copy it anew")
    return content
