"""Write a checkpoint in another form, shard by shard; resume one that was interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

from torch import Tensor

from ecoflap.errors import UserError, require_choice
from ecoflap.storage.bitmask.encoding import same_bits
from ecoflap.storage.bitmask.forms import CODED, DENSE, FORMS
from ecoflap.storage.bitmask.index import shard_name, write_index
from ecoflap.storage.bitmask.shards import ShardReader, found_shard, is_coded, write_shard
from ecoflap.storage.disk_space import writing
from ecoflap.storage.file_names import WEIGHTS_FILE, WEIGHTS_INDEX
from ecoflap.storage.files import TEMPORARY, flush, replacing, write_json
from ecoflap.storage.lease import held
from ecoflap.storage.saved_model import LAVIS, foreign_weights, open_checkpoint, refuse_adapter, weight_files
from ecoflap.storage.sharing.card import adapt_card
from ecoflap.storage.stored_tensor import stored_tensors, write_in_parts
from ecoflap.storage.tensor_files import LavisFile, TensorFiles

SHARD_BYTES = 2**30
"""The most dense bytes of a shard, unless one tensor is larger."""


def convert(folder: Path, out: Path, form: str) -> None:
    """Write the checkpoint of a folder in another form, with the other files of the folder.

    It is written into ``OUT.partial``, which becomes ``out`` at its end. Shards that an interrupted call left
    there are kept, if they hold the same tensors. A card that ecoflap wrote says what the new form gains.

    Args:
        folder: a checkpoint in any form.
        out: the new folder; it may be there if it is empty.
        form: dense, bitmask, or coded.

    Raises:
        UserError: if there is no such form, the folder has an adapter, ``out`` holds something, is a mount
            point or is being written by another process, or the disk is full.
        FileNotFoundError: if the folder holds no checkpoint, or a part of it is missing.
        ValueError: if the checkpoint is damaged.
    """
    require_choice("form", form, FORMS)
    refuse_adapter(folder)
    if folder.resolve() in out.resolve().parents:
        raise UserError(f"{out} is inside of {folder}, which is copied there; choose a folder beside it")
    _require_empty(out)
    if os.path.ismount(out):
        raise UserError(
            f"{out} is where a disk is mounted, and the finished folder can't be put in its place; choose a"
            " folder inside it"
        )
    out = out.resolve()  # behind a link
    partial = out.with_name(f"{out.name}.partial")
    if partial.resolve() == folder.resolve():
        raise UserError(
            f"{folder} is where the new checkpoint would be written; choose another name than {out}"
        )

    def refusal(owner: str) -> str:
        return (
            f"{partial} is being written by another ecoflap convert ({owner}); wait for it to end, or choose"
            " another folder"
        )

    with writing("the checkpoint", out.parent), held(partial.with_name(f"{partial.name}.lease"), refusal):
        _require_empty(out)  # another process may have written it since
        rewrite(folder, partial, form)
        adapt_card(partial)
        if out.exists():
            out.rmdir()
        partial.rename(out)
        flush(out.parent)


def _require_empty(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        UserError: if it does, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and holds something; choose a new folder")


def rewrite(folder: Path, target: Path, form: str) -> None:
    """Write the checkpoint of a folder in another form into a folder that may hold a part of it.

    The file that makes it a checkpoint is written last.

    Raises:
        UserError: if the checkpoint is in LAVIS' format, or the disk is full.
        FileNotFoundError: if the folder holds no checkpoint, or a part of it is missing.
        ValueError: if the checkpoint is damaged.
    """
    with open_checkpoint(folder) as source, writing("the checkpoint", target.parent):
        if isinstance(source, LavisFile):
            raise UserError(f"{folder} holds a model in LAVIS' format ({LAVIS}), which has no other form")
        shapes = _shapes(source, folder, form)
        shards = plan_shards(shapes, dense_name if form == DENSE else shard_name)
        _prepare(target, shards.keys())
        _copy_others(folder, target)
        for file, names in shards.items():
            path = target / file
            if form == DENSE and not _is_written_dense(path, names, source):
                _write_dense(path, {name: shapes[name] for name in names}, source)
            elif form != DENSE and not _is_written(path, names, source, form == CODED):
                write_shard(path, names, source.read, form == CODED)
        if form == DENSE:
            _write_dense_index(target, shards, shapes)
        else:
            write_index(target, {file: found_shard(target / file) for file in shards})


def _shapes(source: TensorFiles, folder: Path, form: str) -> dict[str, Tensor]:
    """Each tensor of a checkpoint on the meta device.

    Raises:
        UserError: if its files can't be read, or hold tensors of other dtypes.
    """
    try:
        return source.shapes()
    except OSError as error:
        raise UserError(f"{folder} can't be written in the form {form}: {error}") from error


def plan_shards(shapes: Mapping[str, Tensor], name: Callable[[int, int], str]) -> dict[str, list[str]]:
    """{file: its tensors}, by their dense sizes alone, so that an interrupted save finds its files.

    Args:
        shapes: {tensor: one of its shape and dtype}.
        name: returns the name of a file by its number from 1 and the number of files.
    """
    groups: list[list[str]] = [[]]
    used = 0
    for tensor, like in shapes.items():
        if groups[-1] and used + like.nbytes > SHARD_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += like.nbytes
    return {name(number, len(groups)): names for number, names in enumerate(groups, start=1)}


def dense_name(number: int, of: int) -> str:
    """The name of a shard that ``from_pretrained`` loads."""
    return WEIGHTS_FILE if of == 1 else f"model-{number:05d}-of-{of:05d}.safetensors"


def _prepare(target: Path, files: Set[str]) -> None:
    """Make the folder; of what an interrupted call left there, only shards stay."""
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in files:
            path.unlink()


def _copy_others(folder: Path, target: Path) -> None:
    """Copy all but temporary files and the weights, in whatever format."""
    weights = weight_files(folder) + foreign_weights(folder)

    def left_out(inside: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(inside, name) in weights or name.startswith(TEMPORARY)]

    for path in folder.iterdir():
        if left_out(str(folder), [path.name]):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, ignore=left_out)
        else:
            shutil.copy(path, target / path.name)


def _is_written(path: Path, names: Sequence[str], source: TensorFiles, coded: bool) -> bool:
    """Whether a bitmask shard is there already, sound, and of the same tensors."""
    try:
        entries = found_shard(path).tensors
        shard = ShardReader(path, entries)
        return (
            list(entries) == names
            and is_coded(path) == coded
            and all(same_bits(shard.tensor(name), source.read(name)) for name in names)
        )
    except (OSError, ValueError):
        return False


def _is_written_dense(path: Path, names: Sequence[str], source: TensorFiles) -> bool:
    """Whether a dense shard is there already, and has the same tensors."""
    try:
        stored = stored_tensors(path)
    except OSError:
        return False
    return list(stored) == names and all(same_bits(stored[name].read(), source.read(name)) for name in names)


def _write_dense(path: Path, shapes: Mapping[str, Tensor], source: TensorFiles) -> None:
    """Write a dense shard with one tensor in memory at a time."""
    with replacing(path) as temporary:
        write_in_parts(temporary, shapes, lambda name: [source.read(name)])


def _write_dense_index(
    target: Path, shards: Mapping[str, Sequence[str]], shapes: Mapping[str, Tensor]
) -> None:
    """Write the index of several dense shards; a single one needs none."""
    if len(shards) == 1:
        return
    file_of = {name: file for file, names in shards.items() for name in names}
    total = sum(like.nbytes for like in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}
    write_json(target / WEIGHTS_INDEX, index)
