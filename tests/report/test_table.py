"""The table of a sweep."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import pytest

from ecoflap.report.table import main
from ecoflap.results import LayerCount, Result, sparsity_section


def write_run(folder: Path, name: str, pruned: float, sparsity: float = 0.5, seed: int = 0, pruner: str = "wanda", **changes: Any) -> Path:
    fields: dict[str, Any] = {
        "config": {"model": {"name": "tiny"}, "pruner": {"name": pruner}, "score": {"name": "zeroth"}, "sparsity": sparsity, "seed": seed},
        "versions": {},
        "git": None,
        "model": {"name": "tiny", "fingerprint": "f", "parameters": 20, "prunable": 10},
        "data": {},
        "metrics": {"dense": {"vqa": {"accuracy": 80.0}}, "pruned": {"vqa": {"accuracy": pruned, "loss": 3.0}}},
        "sparsity": sparsity_section({"a": LayerCount("text", 10, 5, 5)}, sparsity, 20),
        "steps": {},
    }
    path = folder / name / "result.json"
    Result(**{**fields, **changes}).write(path)
    return path


def test_mean_deviation_and_count_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, value in enumerate([70.0, 72.0, 74.0]):
        write_run(tmp_path, f"w{seed}", value, seed=seed)
    write_run(tmp_path, "deep/w", 60.0, sparsity=0.7)
    write_run(tmp_path, "s", 75.0, pruner="sparsegpt")
    assert main([str(tmp_path), "--csv", str(tmp_path / "table.csv")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "| model | pruner | score | metric | dense | 0.5 | 0.7 |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        "| tiny | sparsegpt | zeroth | vqa/accuracy | 80 | 75 (n=1) |  |",
        "| tiny | wanda | zeroth | vqa/accuracy | 80 | 72 ± 2 (n=3) | 60 (n=1) |",
    ]
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["pruner"], row["sparsity"], row["n"], row["mean"], row["deviation"], row["dense"]) for row in rows] == [
        ("sparsegpt", "0.5", "1", "75.0", "", "80.0"),
        ("wanda", "0.5", "3", "72.0", "2.0", "80.0"),
        ("wanda", "0.7", "1", "60.0", "", "80.0"),
    ]


def test_runs_with_another_headline_get_their_own_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "a", 70.0)
    write_run(tmp_path, "b", 0.0, metrics={"dense": {}, "pruned": {"text": {"perplexity": math.inf}}})
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| vqa/accuracy | 80 | 70 (n=1) |" in out
    assert "| text/perplexity |  | inf (n=1) |" in out


def test_not_finite_values_do_not_stop_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "a", math.inf)
    write_run(tmp_path, "b", 1.0, seed=1)
    assert main([str(tmp_path)]) == 0
    assert "inf ± nan (n=2)" in capsys.readouterr().out


def test_a_repeated_seed_counts_once_and_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write_run(tmp_path, "z-old", 1.0), write_run(tmp_path, "a-new", 2.0)
    os.utime(old, (1, 1))
    os.utime(new, (2, 2))
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "| 2 (n=1) |" in out
    assert "have seed 0" in err


def test_nothing_to_show_and_records_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no result.json below" in capsys.readouterr().err
    path = write_run(tmp_path, "a", 1.0, config={"model": {"name": "tiny"}})
    assert main([str(tmp_path)]) == 2
    assert str(path) in (err := capsys.readouterr().err)
    assert "pruner" in err
    write_run(tmp_path, "a", 1.0, metrics={"dense": {}, "pruned": {}})
    assert main([str(tmp_path)]) == 2
    assert str(path) in capsys.readouterr().err
