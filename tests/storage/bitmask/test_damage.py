"""Whatever is missing, changed or unfinished is found, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from ecoflap.storage.bitmask.convert import convert
from ecoflap.storage.bitmask.index import digest
from ecoflap.storage.saved_model import open_checkpoint
from tests.storage.bitmask.conftest import check_equal, read_all

pytestmark = pytest.mark.long

INDEX = "bitmask.index.json"
SPARSE = "layers.0.weight"


@pytest.fixture(params=["bitmask", "coded"])
def small(dense: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    convert(dense, tmp_path / "small", request.param)
    return tmp_path / "small"


def test_a_flipped_bit_is_found_wherever_it_is(small: Path, tensors: dict[str, Tensor]) -> None:
    random = Random(0)
    files = sorted(small.glob("bitmask*"))
    for file in files:
        original = file.read_bytes()
        for _ in range(40):
            content = bytearray(original)
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            file.write_bytes(content)
            with pytest.raises(ValueError, match=file.name):
                read_all(small)
        file.write_bytes(original)
    check_equal(small, tensors)


def test_a_flipped_bit_is_found_in_a_tensor_even_if_its_file_counts_as_sound(small: Path) -> None:
    """The check of the tensor's own bytes doesn't rest on that of the file, or on the numbers of values."""
    index = json.loads((small / INDEX).read_text())
    file = next(file for file, shard in index["shards"].items() if SPARSE in shard["tensors"])
    content = bytearray((small / file).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    parts = json.loads(content[8:header])
    part = next(one for one in (f"{SPARSE}:values", f"{SPARSE}:values.1") if one in parts)
    content[header + parts[part]["data_offsets"][0]] ^= 1
    (small / file).write_bytes(content)
    from ecoflap.storage.bitmask.shards import file_digest

    index["shards"][file]["blake2b"] = file_digest(small / file)
    write_signed(small, index)
    with pytest.raises(ValueError, match=r"is damaged: its BLAKE2b is another"):
        read_all(small)


def write_signed(folder: Path, index: dict[str, Any]) -> None:
    """The index with a checksum that fits."""
    index.pop("blake2b")
    checksum = digest(json.dumps(index, sort_keys=True).encode())
    (folder / INDEX).write_text(json.dumps({**index, "blake2b": checksum}))


def test_a_cut_or_missing_shard(small: Path) -> None:
    file = sorted(small.glob("bitmask-*"))[1]
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=f"{file.name} is damaged: its size"):
        read_all(small)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file.name} is missing, which the checkpoint's index"):
        read_all(small)


def test_swapped_shards(small: Path) -> None:
    one, other = sorted(small.glob("bitmask-*"))[1:3]
    one.rename(small / "aside")
    other.rename(one)
    (small / "aside").rename(other)
    with pytest.raises(ValueError, match="is damaged"):
        read_all(small)


def test_without_an_index_it_is_no_checkpoint(small: Path) -> None:
    (small / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {INDEX}, so .* was not finished"):
        open_checkpoint(small)


def test_another_version_or_format(small: Path) -> None:
    index = json.loads((small / INDEX).read_text())
    write_signed(small, {**index, "version": 2})
    with pytest.raises(ValueError, match=r"has version 2, and this release reads version 1; install"):
        open_checkpoint(small)
    write_signed(small, {**index, "format": "other"})
    with pytest.raises(ValueError, match="is not an index of a bitmask checkpoint"):
        open_checkpoint(small)
    (small / INDEX).write_text("[]")
    with pytest.raises(ValueError, match="is not an index of a bitmask checkpoint"):
        open_checkpoint(small)


def test_an_index_that_names_files_elsewhere_or_unknown_kinds(small: Path) -> None:
    index = json.loads((small / INDEX).read_text())
    file, shard = next((file, one) for file, one in index["shards"].items() if SPARSE in one["tensors"])
    write_signed(small, {**index, "shards": {"../secret.safetensors": shard}})
    with pytest.raises(ValueError, match=r"names the file '../secret.safetensors', which is not a shard"):
        open_checkpoint(small)
    write_signed(small, {**index, "shards": {file: {"bytes": 1, "blake2b": ""}}})
    with pytest.raises(ValueError, match=r"bitmask\.index\.json is damaged \(KeyError\('tensors'\)\)"):
        open_checkpoint(small)
    for change, message in (
        ({"dtype": "F4"}, "there is a tensor of dtype F4"),
        ({"encoding": "7:4"}, "the encoding 7:4, which does not exist"),
        ({"encoding": "huffman"}, "the encoding huffman, which does not exist"),
        ({"encoding": "1:4"}, "it has no part codes"),
        ({"shape": [48, 72]}, "instead of"),
    ):
        entries = {SPARSE: {**shard["tensors"][SPARSE], **change}}
        write_signed(small, {**index, "shards": {file: {**shard, "tensors": entries}}})
        with pytest.raises(ValueError, match=message), open_checkpoint(small) as checkpoint:
            checkpoint.tensor(SPARSE)


def test_a_dense_checkpoint_is_preferred(small: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, small / "model.safetensors")
    assert list(read_all(small)) == ["w"]
