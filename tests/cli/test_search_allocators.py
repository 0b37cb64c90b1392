"""Allocators that search with the pruner, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoflap.allocate import evopress
from ecoflap.errors import UserError
from ecoflap.storage.results import Result, verify

Run = Callable[..., Result]
EVOPRESS = ["allocation=evopress", "allocation.generations=3", "allocation.offspring=4", "allocation.step=8"]
NEURONAL = ["allocation=neuronal", "allocation.spreads=[0.05,0.2]"]


@pytest.fixture
def unscored(text_run: list[str]) -> list[str]:
    return [override for override in text_run if not override.startswith("score.")]


def allocation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "allocation.json").read_text())
    return found


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt", "magnitude"])
@pytest.mark.parametrize("chosen", [EVOPRESS, NEURONAL], ids=["evopress", "neuronal"])
@pytest.mark.every_run("neuronal-sparsegpt", "evopress-wanda", "evopress-magnitude")
def test_runs_and_verifies(
    run: Run, unscored: list[str], tmp_path: Path, chosen: list[str], pruner: str
) -> None:
    result = run([*unscored, *chosen, f"pruner={pruner}", "model.save=true"])
    layers = result.sparsity["layers"].values()
    assert sum(layer["kept"] for layer in layers) == sum(layer["size"] for layer in layers) * 4 // 10
    assert len({layer["sparsity"] for layer in layers}) > 1
    assert verify(tmp_path / "run") == []
    assert not (tmp_path / "run" / "scores.json").exists()


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(
    "chosen",
    [EVOPRESS, NEURONAL, ["allocation=owl", "allocation.spread=auto"]],
    ids=["evopress", "neuronal", "owl"],
)
@pytest.mark.every_run("owl-wanda", "evopress-sparsegpt", "neuronal-wanda")
def test_trials_have_masks_of_whole_groups(
    run: Run, unscored: list[str], chosen: list[str], pruner: str
) -> None:
    result = run([*unscored, *chosen, f"pruner={pruner}", "pruner.mask=n:4", "sparsity=0.6"])
    layers = result.sparsity["layers"].values()
    assert all(layer["kept"] * 4 % layer["size"] == 0 for layer in layers)
    assert sum(layer["kept"] for layer in layers) <= sum(layer["size"] for layer in layers) * 4 // 10


@pytest.mark.parametrize("chosen", [EVOPRESS, NEURONAL], ids=["evopress", "neuronal"])
@pytest.mark.every_run("evopress")
def test_prunes_an_embedded_model(run: Run, tmp_path: Path, chosen: list[str]) -> None:
    few = ["tracking=none", "device=cpu", "calibration.samples=8", "task.limit=20"]
    run([*few, *chosen, f"cache={tmp_path / 'cache'}"])
    found = allocation(tmp_path / "run")
    for tower in ("vision_model", "language_model.encoder", "language_model.decoder"):
        kept = sum(count for name, count in found["keep"].items() if name.startswith(tower))
        size = sum(count for name, count in found["sizes"].items() if name.startswith(tower))
        assert size * 4 // 10 == kept, "each tower reaches the target by itself"


@pytest.mark.parametrize("chosen", [EVOPRESS, NEURONAL], ids=["evopress", "neuronal"])
def test_offloaded_models_get_the_same(
    run: Run, unscored: list[str], tmp_path: Path, chosen: list[str]
) -> None:
    first = run([*unscored, *chosen, "cache_mode=off"], "none")
    for kind in ("cpu", "disk"):
        again = run([*unscored, *chosen, "cache_mode=off", f"runtime.offload={kind}"], kind)
        assert allocation(tmp_path / kind) == allocation(tmp_path / "none")
        assert again.metrics == first.metrics


@pytest.mark.parametrize("chosen", ["evopress", "neuronal"])
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["pruner.mask=2:4", "sparsity=0.5"], "there is nothing to allocate"),
        (["steps=[allocate]"], "looks at data, so allocate needs calibrate"),
    ],
)
def test_refusals(run: Run, unscored: list[str], chosen: str, extra: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run([*unscored, f"allocation={chosen}", *extra])


def test_a_stopped_search_goes_on_between_generations(
    run: Run, unscored: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evopress, "STORED_EVERY", 1)
    generations = evopress._Search._generations
    done: list[int] = []

    def stopping(self: Any, levels: Any, numbers: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.extend(numbers)
        return generations(self, levels, numbers)

    whole = run([*unscored, *EVOPRESS, f"cache={tmp_path / 'other'}"], "whole")
    monkeypatch.setattr(evopress._Search, "_generations", stopping)
    with pytest.raises(KeyboardInterrupt):
        run([*unscored, *EVOPRESS], "run")
    done.clear()
    result = run([*unscored, *EVOPRESS], "run")
    assert done == [2], "the first two generations are read"
    assert allocation(tmp_path / "run") == allocation(tmp_path / "whole")
    assert result.metrics == whole.metrics
