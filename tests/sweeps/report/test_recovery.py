"""The table of what fine-tuning brought back, from records with known figures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ecoflap.storage.file_names import RESULT
from ecoflap.storage.results import Result, sparsity_section
from ecoflap.sweeps.report.recovery import main


def write(folder: Path, seed: int, figures: dict[str, float], rate: float = 1e-3, *tasks: str) -> None:
    finetune = {"name": "full", "learning_rate": rate}
    config = {
        "model": {"name": "m"},
        "pruner": {"name": "wanda"},
        "score": {"name": "none"},
        "finetune": finetune,
        "sparsity": 0.5,
    }
    metrics = {
        state: {task: {"questions": 3.0, "accuracy": value} for task in tasks or ("vqa",)}
        for state, value in figures.items()
    }
    section = sparsity_section({}, 0.5, 10)
    folder.mkdir(parents=True, exist_ok=True)
    Result(
        config={**config, "seed": seed},
        versions={},
        git=None,
        model={},
        data={},
        metrics=metrics,
        sparsity=section,
        steps={},
    ).write(folder / RESULT)


def test_means_over_seeds_and_the_recovered_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "0", 0, {"dense": 90.0, "pruned": 60.0, "finetuned": 80.0})
    write(tmp_path / "1", 1, {"dense": 90.0, "pruned": 70.0, "finetuned": 85.0})
    write(tmp_path / "2", 2, {"dense": 90.0, "pruned": 10.0})  # was not fine-tuned
    assert main([str(tmp_path)]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert (
        row == "| m | wanda | none | full | accuracy | 0.5 | 2 | 90.00 | 65.00 ± 7.07 | 82.50 ± 3.54 | 70% |"
    )


def test_nothing_lost_is_nothing_to_recover(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "0", 0, {"dense": 90.0, "pruned": 60.0, "finetuned": 80.0})
    assert main([str(tmp_path), "--metric", "questions"]) == 0
    assert "nothing lost" in capsys.readouterr().out


def test_what_is_not_finite_or_not_measured_recovers_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "0", 0, {"dense": 90.0, "pruned": math.inf, "finetuned": 80.0})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("| 1 | 90.00 | inf | 80.00 | — |")
    write(tmp_path / "0", 0, {"pruned": 60.0, "finetuned": 80.0})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("| 1 | — | 60.00 | 80.00 | — |")
    write(tmp_path / "0", 0, {"dense": 90.0, "pruned": 60.0, "finetuned": math.inf})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("| inf | — |")


def test_a_folder_without_runs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_only_seeds_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other options and other tasks have rows of their own, and of two equal runs the newer one counts."""
    write(tmp_path / "0", 0, {"dense": 90.0, "pruned": 60.0, "finetuned": 70.0})
    write(tmp_path / "1", 0, {"dense": 90.0, "pruned": 60.0, "finetuned": 80.0}, rate=1e-2)
    write(tmp_path / "2", 0, {"dense": 90.0, "pruned": 60.0, "finetuned": 75.0}, 1e-3, "gqa")
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "| model | pruner | coarse stage | finetune | settings | metric | sparsity | n |"
    )
    assert sorted(line.split(" | ")[4:8] for line in lines[2:]) == [
        ["", "gqa/accuracy", "0.5", "1"],
        ["finetune.learning_rate=0.001", "vqa/accuracy", "0.5", "1"],
        ["finetune.learning_rate=0.01", "vqa/accuracy", "0.5", "1"],
    ]
    write(tmp_path / "3", 0, {"dense": 90.0, "pruned": 60.0, "finetuned": 85.0})
    assert main([str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "the newer one" in captured.err
    assert "| 85.00 |" in captured.out
    assert "| 70.00 |" not in captured.out


def test_runs_on_other_tasks_are_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options are named where they distinguish runs on the same tasks, so that others may differ in any."""
    write(tmp_path / "0", 0, {"dense": 90.0, "pruned": 60.0, "finetuned": 70.0})
    write(tmp_path / "1", 0, {"dense": 90.0, "pruned": 60.0, "finetuned": 80.0}, 1e-2, "vqa", "gqa")
    assert main([str(tmp_path)]) == 0
    rows = [line.strip("| ").split(" | ")[4:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0], row[2], row[5]) for row in rows] == [
        ("gqa/accuracy", "1", "80.00"),
        ("vqa/accuracy", "1", "70.00"),
        ("vqa/accuracy", "1", "80.00"),
    ]
