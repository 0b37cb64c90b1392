"""``model=blip2_flan_t5_xl_lavis`` through the whole pipeline, on a tiny instance, from a local checkpoint to
a LAVIS checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoflap.models.families.lavis.keys import read_lavis_checkpoint
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result, verify
from ecoflap.storage.saved_model import LAVIS
from tests.cli.conftest import run  # noqa: F401 - a fixture
from tests.lavis import tiny


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    torch.save({"model": tiny.module("blip2").state_dict()}, tmp_path / "dense.pth")
    return [
        "model=blip2_flan_t5_xl_lavis",
        f"model.checkpoint={tmp_path / 'dense.pth'}",
        f"model.tokenizer={tiny.t5_tokenizer(tmp_path / 't5')}",
        f"++model.architecture={written(tiny.BLIP2)}",
        "calibration=easy_vqa",
        "calibration.samples=6",
        "task=easy_vqa",
        "task.limit=10",
        "tracking=none",
        "device=cpu",
        f"cache={tmp_path / 'cache'}",
    ]


@pytest.mark.parametrize(("score", "pruner"), [("zeroth_order", "wanda"), ("first_order", "sparsegpt")])
def test_from_checkpoint_to_checkpoint(
    run: Callable[..., Result],
    overrides: list[str],
    tmp_path: Path,
    score: str,
    pruner: str,
) -> None:
    result = run([*overrides, f"score={score}", "score.samples=4", f"pruner={pruner}", "model.save=true"])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)
    assert set(result.sparsity["towers"]) == {"vision", "encoder", "decoder"}
    assert set(result.metrics) == {"dense", "pruned"}
    assert verify(tmp_path / "run") == []
    folder = tmp_path / "run" / "checkpoint"
    state = read_lavis_checkpoint(folder / LAVIS)
    for name, mask in load_masks(folder / "masks.bits").items():
        assert not state[name][~mask].any()
        assert int((state[name] == 0).sum()) == result.sparsity["layers"][name]["zeros"]
    again = run([*overrides, f"model.checkpoint={folder / LAVIS}", "steps=[evaluate]"], "again")
    assert again.metrics["dense"] == result.metrics["pruned"]
