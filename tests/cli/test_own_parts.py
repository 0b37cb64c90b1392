"""Parts from outside of the package, through the whole pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ecoflap.storage.results import Result

Run = Callable[..., Result]
SIZES = ("score.samples=4", "score.batch_size=2")


@pytest.fixture
def unscored(text_run: list[str]) -> list[str]:
    return [override for override in text_run if not override.startswith("score.")]


def scored_by(name: str) -> list[str]:
    return ["score=none", f"+score._target_=tests.own_parts.{name}", f"score.name={name}", *SIZES]


def read(folder: Path, name: str) -> dict:
    content: dict = json.loads((folder / f"{name}.json").read_text())
    return content


def test_one_number_per_block_decides_its_sparsity(run: Run, unscored: list[str], tmp_path: Path) -> None:
    result = run([*unscored, *scored_by("BlockNorms")])
    scores, allocation = read(tmp_path / "run", "scores"), read(tmp_path / "run", "allocation")
    assert scores["granularity"] == "block"
    kept = {
        block: sum(keep for layer, keep in allocation["keep"].items() if layer.startswith(f"{block}."))
        for block in scores["importance"]
    }
    assert len(set(kept.values())) == len(kept)
    assert sorted(kept, key=kept.__getitem__) == sorted(kept, key=scores["importance"].__getitem__)
    assert result.sparsity["allocated_by"] == "allocation"


def test_a_scorer_and_an_allocator_agree_on_a_kind(run: Run, unscored: list[str], tmp_path: Path) -> None:
    allocation = ["~allocation", "+allocation._target_=tests.own_parts.ByNorms"]
    run([*unscored, *scored_by("LayerNorms"), *allocation])
    assert read(tmp_path / "run", "scores")["kind"] == "norms"
    assert read(tmp_path / "run", "allocation")["granularity"] == "model"


def test_a_pruner_of_ten_lines(run: Run, unscored: list[str]) -> None:
    pruner = ["~pruner", "+pruner._target_=tests.own_parts.FirstWeights"]
    result = run([*unscored, "score=none", "steps=[calibrate,allocate,prune,evaluate]", *pruner])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)


def test_a_pruner_that_allocates_says_so(run: Run, unscored: list[str]) -> None:
    assert run([*unscored, "pruner=global_magnitude"]).sparsity["allocated_by"] == "pruner"
