"""Costs of saved models: counted by hand for a tiny language model, and of a BLIP that was cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ecoflap.storage.results import Result
from ecoflap.sweeps.report.cost import main, measure
from tests.cli.conftest import run, text_file, text_run, tiny_llama, token_file  # noqa: F401

pytestmark = pytest.mark.long

Run = Callable[..., Result]


def test_zeros_are_multiplied_and_counted(text_run: list[str], run: Run, tmp_path: Path) -> None:
    result = run(
        [*text_run, "score=none", "model.save=true", "steps=[calibrate,allocate,prune]", "sparsity=0.5"]
    )
    dense, pruned = measure([tmp_path / "run"], batch_size=2, repeats=3)
    assert (
        dense.parameters
        == pruned.parameters
        == pruned.nonzero + round(result.sparsity["prunable"] * result.model["prunable"])
    )
    assert dense.operations == pruned.operations == dense.without_zeros
    zeros = sum(layer["zeros"] for layer in result.sparsity["layers"].values())
    assert (
        pruned.operations - pruned.without_zeros == 2 * zeros * 2 * 12
    )  # multiply and add, two rows of twelve tokens
    assert pruned.milliseconds > 0


def test_a_run_without_a_model_is_refused(
    text_run: list[str],
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run([*text_run, "score=none", "steps=[calibrate,allocate,prune]"])
    assert main([str(tmp_path / "run")]) == 2
    assert "model.save=true" in capsys.readouterr().err


def test_a_cut_blip_has_less_to_compute(run: Run, tmp_path: Path) -> None:
    options = [
        "pruner.steps=4",
        "pruner.interval=2",
        "pruner.batch_size=2",
        "calibration.samples=4",
        "model.save=true",
        "tracking=none",
        "device=cpu",
    ]
    run(
        [
            "model=blip_caption_mini",
            "pruner=upop",
            "steps=[calibrate,allocate,prune]",
            "sparsity=0.5",
            f"cache={tmp_path}",
            *options,
        ]
    )
    dense, cut = measure([tmp_path / "run"], batch_size=1, repeats=2)
    assert cut.parameters < dense.parameters
    assert cut.operations < 0.7 * dense.operations
    assert cut.without_zeros == pytest.approx(cut.operations, rel=1e-3)
