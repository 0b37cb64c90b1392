"""Global pruners through the pipeline: no scores, no allocation asked for, one written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ecoflap.errors import UserError
from ecoflap.storage.results import Result, verify


@pytest.mark.parametrize("pruner", ["global_magnitude", "global_gradient"])
def test_global_pruners_run_and_verify(
    run: Callable[..., Result], text_run: list[str], tmp_path: Path, pruner: str
) -> None:
    overrides = [override for override in text_run if not override.startswith("score.")]
    result = run([*overrides, f"pruner={pruner}", "model.save=true"])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)
    layers = {layer["sparsity"] for layer in result.sparsity["layers"].values()}
    assert len(layers) > 3, "every layer has its own share"
    assert (tmp_path / "run" / "allocation.json").is_file()
    assert not (tmp_path / "run" / "scores.json").exists()
    assert verify(tmp_path / "run") == []


def test_a_score_is_refused(run: Callable[..., Result], text_run: list[str]) -> None:
    overrides = [override for override in text_run if not override.startswith("score.")]
    with pytest.raises(
        UserError, match="compares all weights by itself, so score=first_order would change nothing"
    ):
        run([*overrides, "pruner=global_gradient", "score=first_order"])
