"""What a run says at its end, and how its folder is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ecoflap.console.tracking import NoTracker
from ecoflap.run.closing import closing, show_in_tracker
from ecoflap.run.invocation import run_label
from ecoflap.run.state import RunState
from ecoflap.storage.results import Result
from ecoflap.storage.results.metrics import without_errors

BASE = Result(
    config={},
    versions={},
    git=None,
    model={"name": "m", "parameters": 90},
    data={},
    metrics={
        "dense": {"t": {"accuracy": 90.0, "questions": 1200}, "served": {"questions": 5}},
        "pruned": {"t": {"accuracy": 80.0, "questions": 1200}, "served": {"questions": 5}},
    },
    sparsity={"prunable": 0.5, "model": 0.25, "total": "exact"},
    steps={"prune": {"seconds": 125.0, "peak_memory_bytes": 2**30, "cached": False}},
)


def lines(folder: Path, **changes: object) -> list[str]:
    return list(closing(Result(**{**vars(BASE), **changes}), folder))


def test_figures_with_their_interval_and_without(tmp_path: Path) -> None:
    errors = {"dense": {"t": {"accuracy": 1.0}}, "pruned": {"t": {"accuracy": 2.0}}}
    said = lines(tmp_path, standard_errors=errors)
    assert "done in 2 min 05 s, with 1.00 GiB at most" in said
    assert "  t accuracy: dense 90.00 ± 1.96, pruned 80.00 ± 3.92" in said
    assert "  t accuracy: dense 90.00, pruned 80.00" in lines(tmp_path)
    assert not any("served" in line for line in said)  # a server scores it


def test_an_error_that_is_not_known_is_left_out() -> None:
    """That of a single item is NaN."""
    found = {"loss": 3.0, "loss_stderr": 0.5, "accuracy": 1.0, "accuracy_stderr": math.nan}
    assert without_errors(found) == ({"loss": 3.0, "accuracy": 1.0}, {"loss": 0.5})


def test_what_the_folder_holds_and_what_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "run"
    (run / "checkpoint").mkdir(parents=True)
    (run / "checkpoint" / "model.safetensors").write_bytes(bytes(2**20))
    said = lines(run, checkpoint="checkpoint")
    assert "  sparsity: 50.00 % of the prunable weights, 25.00 % of all" in said
    assert "  folder: outputs/run" in said
    assert "  it holds result.json and checkpoint/ (1.0 MiB)" in said
    assert "verify" in said[-1]
    unsaved = lines(run)
    assert "verify" not in unsaved[-1]
    assert any("model.save=true" in line for line in unsaved)
    units = lines(run, sparsity={"total": "units", "prunable": 0.0, "model": 0.0})
    assert "  whole units were removed; 90 parameters remain" in units


class Shown(NoTracker):
    """A tracker that keeps the summary."""

    def summary(self, values: Mapping[str, Any]) -> None:
        self.figures = dict(values)


def test_a_tracker_is_shown_what_runs_are_compared_by() -> None:
    errors = {"dense": {"t": {"accuracy": 1.0}}, "pruned": {"t": {"accuracy": 2.0}}}
    tracker = Shown()
    show_in_tracker(tracker, Result(**{**vars(BASE), "standard_errors": errors}), RunState("weights"))
    assert tracker.figures["headline"] == 80.0
    assert tracker.figures["standard_errors"] == errors
    assert tracker.figures["seconds"] == {"prune": 125.0}


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"model": {"name": "a"}, "pruner": {"name": "wanda"}, "sparsity": 0.5}, "a_wanda_s0.5"),
        ({"model": {"name": "o/p t"}, "allocation": {"name": "owl"}}, "o-p-t_owl"),
        ({"model": {"name": "a"}, "allocation": {"name": "auto"}, "sparsity": "???"}, "a"),
        ({"model": "???", "pruner": None}, ""),
        ({"model": {"name": "long" * 50}}, "long" * 20),
    ],
)
def test_a_folder_is_named_by_what_is_known(config: dict[str, object], label: str) -> None:
    assert run_label(_root_=OmegaConf.create(config)) == label
