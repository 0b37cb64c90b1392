"""Tensors of safetensors files, by plain reads, are what the format's own library reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecoflap.storage import stored_tensor
from ecoflap.storage.stored_tensor import DTYPES, stored_tensors, write_in_parts


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """One of each dtype; the odd byte counts leave later ones unaligned."""
    numbers = torch.arange(-10, 11).reshape(7, 3)
    return {f"{name}.{index}": numbers.to(dtype) for index, (name, dtype) in enumerate(DTYPES.items())} | {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
    }


@pytest.fixture
def file(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_reads_what_the_library_reads(file: Path, tensors: dict[str, Tensor]) -> None:
    found = stored_tensors(file)
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        stored = found[name]
        assert torch.equal(stored.read(), expected)
        assert stored.read().dtype == expected.dtype
        assert torch.equal(torch.cat([*stored.parts(), expected.flatten()[:0]]), expected.flatten())


def test_rows_in_any_order(file: Path, tensors: dict[str, Tensor]) -> None:
    wanted = torch.tensor([6, 0, 3, 3])
    for name in ("F32.1", "BF16.3", "I8.7"):
        assert torch.equal(stored_tensors(file)[name].rows(wanted), tensors[name][wanted])


def test_many_parts(file: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_tensor, "PART", 16)
    parts = list(stored_tensors(file)["F32.1"].parts())
    assert [len(part) for part in parts] == [4, 4, 4, 4, 4, 1]
    assert torch.equal(torch.cat(parts), tensors["F32.1"].flatten())


def test_the_library_reads_what_is_written(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    write_in_parts(tmp_path / "out.safetensors", tensors, lambda name: tensors[name].flatten().split(5))
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_file_that_is_cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(OSError, match="is cut off"):
        stored_tensors(file)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"no tensors in here")
    with pytest.raises(OSError, match="is not a safetensors file"):
        stored_tensors(path)
    header = json.dumps({"w": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(OSError, match="dtype F4"):
        stored_tensors(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"data_offsets"', b'"data_offsetr"'),
        (b'"shape"', b'"shapd"'),
        (b'"dtype":"F32"', b'"dtypd":"F32"'),
        (b"[4096,8192]", b"[4097,8192]"),
        (b"[4096,8192]", b"[4096,8182]"),
        (b"[32,32]", b"[32,12]"),
        (b"[32,32]", b'"2,32"'),
        (b'"dtype":"F32"', b'"dtype":"F64"'),
    ],
)
def test_a_damaged_header(before: bytes, after: bytes, tmp_path: Path) -> None:
    """The format's own library refuses it, too; else the numbers read would be those of other weights."""
    path = tmp_path / "model.safetensors"
    save_file({name: torch.randn(32, 32) for name in "ab"}, path)
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(OSError, match="is not a safetensors file, or its header is damaged"):
        stored_tensors(path)
