"""A small checkpoint of many shards, as save_pretrained would write it, with files beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ecoflap.storage.bitmask import convert as converting
from ecoflap.storage.saved_model import open_checkpoint
from tests.storage.bitmask.by_hand import pruned, same


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Sparse, dense, of several dtypes, 2:4, a scalar, an empty one and a vector."""
    pairs = pruned((64, 32), 1, torch.bfloat16)
    pairs[:, 0::4] = pairs[:, 3::4] = 0
    return {
        **{f"layers.{i}.weight": pruned((48, 64), 0.4, torch.bfloat16, i) for i in range(6)},
        "experts": pruned((4, 24, 32), 0.5, torch.float32),
        "groups": pairs,
        "head": torch.randn(40, 64, generator=torch.Generator().manual_seed(1)),
        "norm": torch.ones(64),
        "scale": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
    }


@pytest.fixture
def dense(tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder; from here on, shards are of 12,000 dense bytes."""
    folder = tmp_path / "dense"
    (folder / "inside").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "inside" / "more.txt").write_text("more")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({"layers.0.weight": torch.zeros(4)}, folder / "masks.bits")
    monkeypatch.setattr(converting, "SHARD_BYTES", 12_000)
    return folder


def read_all(folder: Path) -> dict[str, Tensor]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def check_equal(folder: Path, tensors: dict[str, Tensor]) -> None:
    found = read_all(folder)
    assert found.keys() == tensors.keys()
    assert all(same(found[name], tensor) for name, tensor in tensors.items())
