"""Runs that the memory or a model's numbers stop, and what a failing run leaves of an earlier result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecoflap.errors import NumericalError, UserError
from ecoflap.storage.results import Result

Run = Callable[..., Result]


def test_a_model_that_does_not_fit(run: Run, text_run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Full:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    with pytest.raises(UserError, match=r"GiB free.*model\.dtype=bfloat16"):
        run(text_run)


def test_the_loss_overflows(run: Run, text_run: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    huge = shutil.copytree(tiny_llama, tmp_path / "huge")
    state = load_file(huge / "model.safetensors")
    state["lm_head.weight"] = torch.full_like(state["lm_head.weight"], 3e38)
    save_file(state, huge / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="loss"):
        run([*text_run, f"model.path={huge}", "steps=[calibrate,score]"])


def test_a_failing_run_leaves_no_earlier_result_in_its_folder(
    run: Run, text_run: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    run([*text_run, "model.save=true"])
    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="damaged"):
        run([*text_run, f"model.path={broken}", "resume=false"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["status.json"]


def test_a_refused_run_leaves_an_earlier_result_alone(run: Run, text_run: list[str], tmp_path: Path) -> None:
    run(text_run)
    with pytest.raises(UserError, match="vision"):
        run([*text_run, "towers=[vision]", "resume=false"])
    assert (tmp_path / "run" / "result.json").exists()
