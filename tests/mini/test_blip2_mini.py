"""The embedded model: small, right, and hurt by pruning."""

from __future__ import annotations

from pathlib import Path

import pytest
from easy_vqa import get_test_questions

from ecoflap.run import pipeline
from ecoflap.run.config import package_file
from tests.cli.conftest import composed

FOLDER = Path(package_file("mini/blip2"))


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Uniform Wanda at 60 %, on all held-out questions."""
    folder = tmp_path_factory.mktemp("run")
    result = pipeline.run(
        composed(["score=none", "task.limit=null", "tracking=none", f"cache={folder}"]), folder
    )
    assert result is not None
    return {name: values["easy_vqa"] for name, values in result.metrics.items()}


def test_it_answers_the_held_out_questions(metrics: dict[str, dict[str, float]]) -> None:
    assert metrics["dense"]["questions"] == len(get_test_questions()[0])
    assert metrics["dense"]["accuracy"] >= 95


def test_uniform_wanda_at_60_percent_costs_5_points_or_more(metrics: dict[str, dict[str, float]]) -> None:
    assert metrics["pruned"]["accuracy"] <= metrics["dense"]["accuracy"] - 5
    assert metrics["pruned"]["accuracy"] > 67, "still better than a guesser that sees only the question"


def test_the_default_command_runs_and_shows_what_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = pipeline.run(
        composed(["tracking=none", f"cache={tmp_path / 'cache'}", "task.limit=200", "score.samples=8"]),
        tmp_path,
    )
    assert result is not None
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)
    shown = capsys.readouterr().out
    for word in (
        "vision",
        "encoder",
        "decoder",
        "left dense",
        "qformer",
        "sparsity (target 0.6",
        "dense",
        "pruned",
        "accuracy",
    ):
        assert word in shown
