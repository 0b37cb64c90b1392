"""The folder of a saved model: open its checkpoint, and tell weights, adapters and other files apart."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING

from ecoflap.errors import UserError
from ecoflap.storage.file_names import (
    ADAPTER,
    ADAPTER_CONFIG,
    BITMASK_INDEX,
    BITMASK_SHARDS,
    CHECKPOINT,
    RESULT,
    WEIGHTS_FILE,
    WEIGHTS_INDEX,
)
from ecoflap.storage.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from ecoflap.storage.tensor_files import TensorFiles


LAVIS = "model.pth"
WEIGHTS = (WEIGHTS_INDEX, WEIGHTS_FILE, "model-*.safetensors", BITMASK_INDEX, BITMASK_SHARDS)
"""Patterns of the files with weights, except in LAVIS' format; an index may list others."""
FOREIGN_WEIGHTS = tuple(
    pattern
    for stem, kind in (
        ("pytorch_model", "bin"),
        ("tf_model", "h5"),
        ("flax_model", "msgpack"),
        ("consolidated", "safetensors"),
    )
    for pattern in (f"{stem}*.{kind}", f"{stem}*.{kind}.index.json")
)
"""Patterns of the weights in other formats, transformers' own and Mistral's, and of their indexes.

``from_pretrained`` loads the former where there are no safetensors, and vLLM prefers the latter to all
others, so they may not stay beside another model.
"""
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "tekken.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
"""Patterns of the files that transformers' tokenizers and processors write.

Files that only a few tokenizers know are not among them, as no other tokenizer reads those.
"""


MODEL_CONFIGS = ("config.json", "generation_config.json")


def open_checkpoint(folder: Path) -> AbstractContextManager[TensorFiles]:
    """Open a checkpoint as ``save_pretrained``, ``ecoflap.save`` or LAVIS writes it; the context closes it.

    Safetensors come before a bitmask, and a file in LAVIS' format last.

    Raises:
        FileNotFoundError: if the folder holds no model, or an unfinished one.
        ValueError: if the index of a bitmask checkpoint is damaged, or of another version.
    """
    from ecoflap.storage.bitmask.reader import BitmaskCheckpoint  # they import torch
    from ecoflap.storage.tensor_files import LavisFile, SafetensorFiles

    if (folder / WEIGHTS_FILE).is_file() or (folder / WEIGHTS_INDEX).is_file():
        return closing(SafetensorFiles(folder))
    if (folder / BITMASK_INDEX).is_file() or any(folder.glob(BITMASK_SHARDS)):
        return closing(BitmaskCheckpoint(folder))
    if (folder / LAVIS).is_file():
        return closing(LavisFile(folder / LAVIS))
    raise FileNotFoundError(
        f"no {WEIGHTS_FILE} and no {WEIGHTS_INDEX} in {folder}: the run's checkpoint was moved or never saved"
        "; run it again with model.save=true"
    )


def hash_weights(folder: Path) -> str:
    """``hash_tensors`` of the checkpoint in a folder.

    Raises:
        FileNotFoundError: as for ``open_checkpoint``.
        OSError, ValueError, SafetensorError: if a file is missing or damaged.
    """
    from ecoflap.storage.tensor_files import hash_tensors  # it imports torch

    with open_checkpoint(folder) as checkpoint:
        return hash_tensors(checkpoint)


def hash_model_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that says how to build a saved model, and how to read and write its inputs.

    Returns:
        {path below the folder: hash} of the configs, and of the files of a tokenizer or processor.
    """
    found = _files(folder, (*MODEL_CONFIGS, *PROCESSOR_FILES))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found
    }


def model_folder(folder: Path) -> Path:
    """The folder of a saved model: the folder itself, or of a run's folder the one with its model.

    Raises:
        UserError: if it is the folder of a run that has saved no model.
    """
    own = ("config.json", LAVIS, *WEIGHTS)
    if not (folder / RESULT).is_file() or any(any(folder.glob(name)) for name in own):
        return folder
    if (folder / CHECKPOINT).is_dir():
        return folder / CHECKPOINT
    raise UserError(f"{folder} is of a run that saved no model; run it again with model.save=true")


def usual_dtype(tensors: Iterable[Tensor]) -> str:
    """The dtype of most of the numbers in some tensors, as in ``model.dtype``; empty if there are none."""
    counts = Counter[str]({"": 0})
    for tensor in tensors:
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def weight_files(folder: Path) -> list[Path]:
    """The files with weights in a checkpoint folder, and their indexes, sorted; not those in LAVIS' format.

    Of names that an index lists, only safetensors in the folder and its subfolders count, so that none leads
    out of it.
    """
    index = read_json(folder / WEIGHTS_INDEX)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    names = {str(name) for name in listed.values()} if isinstance(listed, dict) else set()
    shards = {folder / name for name in names if name.endswith(".safetensors") and (folder / name).is_file()}
    inside = {path for path in shards if path.parent.resolve().is_relative_to(folder.resolve())}
    return sorted(inside | {path for pattern in WEIGHTS for path in folder.glob(pattern)})


def foreign_weights(folder: Path) -> list[Path]:
    """The files with weights in other formats in a folder, and their indexes, sorted.

    Those of an adapter are among them if its config is there, without which nothing loads them.
    """
    adapter = ADAPTER if (folder / ADAPTER_CONFIG).is_file() else ()
    return _files(folder, (*FOREIGN_WEIGHTS, *adapter))


def processor_files(folder: Path) -> list[Path]:
    """The files of a tokenizer or processor in a folder, sorted."""
    return _files(folder, PROCESSOR_FILES)


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files in a folder that match one of some patterns, sorted."""
    found = (path for pattern in patterns for path in folder.glob(pattern))
    return sorted(path for path in found if path.is_file())


def refuse_adapter(folder: Path) -> None:
    """Refuse a checkpoint with a peft adapter beside it, which ``from_pretrained`` would add to its model.

    Raises:
        UserError: if there is one.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        raise adapter_beside(folder)


def adapter_beside(place: str | Path) -> UserError:
    """The error of a folder, or a repository of the hub, with a peft adapter beside its model."""
    return UserError(
        f"{place} has a peft adapter ({ADAPTER_CONFIG}) beside the weights of its model, which transformers"
        " adds to it; give a folder without the adapter's files, or one with the merged model"
    )


def weight_bytes(folder: Path) -> int:
    """Bytes of the files with weights in a checkpoint folder."""
    return sum(path.stat().st_size for path in weight_files(Path(folder)))
