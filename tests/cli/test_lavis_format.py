"""Weights in LAVIS' format, as the paper's authors share them, in and out of transformers' BLIP-2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecoflap.errors import UserError
from ecoflap.storage.results import Result
from tests.cli.conftest import ROOT


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """The embedded model without its biases of keys, which LAVIS has no place for and a softmax doesn't
    feel.
    """
    folder = tmp_path / "dense"
    shutil.copytree(ROOT / "ecoflap" / "mini" / "blip2", folder)
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if name.endswith("qkv.bias"):
            tensor.chunk(3)[1].zero_()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_pruned_weights_travel_in_lavis_format(
    run: Callable[..., Result], dense: Path, tmp_path: Path
) -> None:
    shared = [
        f"model.path={dense}",
        "tracking=none",
        "task.limit=60",
        "calibration.samples=8",
        "score=none",
        f"cache={tmp_path / 'cache'}",
    ]
    first = run([*shared, "model.save=true", "model.save_lavis=true"], "first")
    file = tmp_path / "first" / "checkpoint" / "lavis.pth"
    state = torch.load(file, weights_only=True)["model"]
    assert (state["visual_encoder.blocks.0.mlp.fc1.weight"] == 0).float().mean() == pytest.approx(
        0.6, abs=0.01
    )
    again = run([*shared, f"model.lavis_checkpoint={file}", "steps=[evaluate]"], "again")
    assert again.metrics["dense"] == first.metrics["pruned"]
    assert again.model["fingerprint"] != first.model["fingerprint"]


def test_a_part_of_the_weights_is_enough_and_others_are_refused(
    run: Callable[..., Result], dense: Path, tmp_path: Path
) -> None:
    shared = [f"model.path={dense}", "tracking=none", "task.limit=20", "steps=[evaluate]", "cache_mode=off"]
    torch.save({"model": {"t5_proj.bias": torch.zeros(32)}}, tmp_path / "part.pth")
    run([*shared, f"model.lavis_checkpoint={tmp_path / 'part.pth'}"], "part")
    torch.save({"model": {"t5_proj.bias": torch.zeros(31)}}, tmp_path / "other.pth")
    with pytest.raises(
        UserError,
        match=r"does not fit model\.path: 1 weights are other ones here, such as language_projection\.bias",
    ):
        run([*shared, f"model.lavis_checkpoint={tmp_path / 'other.pth'}"], "other")
