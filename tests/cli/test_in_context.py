"""In-context allocation through the pipeline: the cache, resuming, offloading and the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoflap.allocate import budget_search
from ecoflap.allocate.marginals import Marginals
from ecoflap.errors import UserError
from ecoflap.run.plan import make_plan
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result, verify
from tests.cli.conftest import composed

Run = Callable[..., Result]
IN_CONTEXT = [
    "allocation=in_context",
    "allocation.samples=2",
    "allocation.batch_size=2",
    "allocation.steps=2",
    "allocation.ramp_steps=1",
]

TRAINED = [  # a model that is not random, so that weighing its rows pays
    "model=vit_mini",
    "score=none",
    "sparsity=0.8",
    "calibration.samples=32",
    "task.limit=50",
    "tracking=none",
    "device=cpu",
]


def kept(folder: Path) -> dict[str, int]:
    keep: dict[str, int] = json.loads((folder / "allocation.json").read_text())["keep"]
    return keep


@pytest.mark.parametrize("pruner", ["magnitude", "wanda", "ria", "sparsegpt", "admm"])
def test_every_layer_pruner_is_allocated_for(
    run: Run, text_run: list[str], tmp_path: Path, pruner: str
) -> None:
    result = run([*text_run, *IN_CONTEXT, f"pruner={pruner}", "model.save=true"])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)
    assert len(set(kept(tmp_path / "run").values())) > 3
    assert "score" not in result.steps, "nothing reads scores"
    assert verify(tmp_path / "run") == []


@pytest.mark.parametrize("option", ["allocation.granularity=row", "allocation.rows=weighted"])
@pytest.mark.parametrize("pruner", ["wanda", "ria", "magnitude", "admm"])
@pytest.mark.every_run("wanda-*=row", "ria-*=weighted", "magnitude-*=weighted", "admm-*=row")
def test_rows_have_counts_of_their_own(
    run: Run, text_run: list[str], tmp_path: Path, pruner: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks have them, and a run that takes the file has the same masks; even rows would win, as weights
    are random.
    """
    monkeypatch.setattr(budget_search.BudgetSearch, "best", lambda _, candidates: (candidates["last"], {}))
    fine = [f"pruner={pruner}", "pruner.mask=row"]
    result = run([*text_run, *IN_CONTEXT, *fine, option, "model.save=true"])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)
    assert verify(tmp_path / "run") == []
    rows = json.loads((tmp_path / "run" / "allocation.json").read_text())["rows"]
    masks = load_masks(tmp_path / "run" / "checkpoint" / "masks.bits")
    assert {name: mask.sum(dim=1).tolist() for name, mask in masks.items()} == rows
    assert any(max(counts) - min(counts) > 1 for counts in rows.values())
    file = ["allocation=file", f"allocation.path={tmp_path / 'run' / 'allocation.json'}"]
    again = run(
        [*text_run, *fine, *file, f"propagate={result.config['propagate']}", "model.save=true"], "again"
    )
    others = load_masks(tmp_path / "again" / "checkpoint" / "masks.bits")
    assert all(torch.equal(mask, others[name]) for name, mask in masks.items())
    assert again.metrics == result.metrics


@pytest.mark.parametrize("fine", [["pruner=sparsegpt"], ["pruner=admm", "pruner.mask=matrix"]])
def test_rows_have_weights_where_those_of_all_rows_compete(
    run: Run, tmp_path: Path, fine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that takes the file ends the same; even rows may win, by little and not on all processors."""
    monkeypatch.setattr(budget_search.BudgetSearch, "best", lambda _, candidates: (candidates["last"], {}))
    base = [*TRAINED, f"cache={tmp_path / 'cache'}"]
    result = run([*base, *IN_CONTEXT, *fine, "model.save=true"])
    assert verify(tmp_path / "run") == []
    file = tmp_path / "run" / "allocation.json"
    value = json.loads(file.read_text())
    assert set(value["row_weights"]) == set(value["keep"])
    assert not value["rows"]
    taken = ["allocation=file", f"allocation.path={file}", f"propagate={result.config['propagate']}"]
    assert run([*base, *taken, *fine], "again").metrics == result.metrics
    with pytest.raises(UserError, match=r"each row a weight of its own.*pruner\.mask=matrix"):
        make_plan(composed([*base, *taken, "pruner=wanda"]), tmp_path / "wanda")
    name = next(iter(value["row_weights"]))
    value["row_weights"][name] = value["row_weights"][name][1:]
    file.write_text(json.dumps(value))
    with pytest.raises(UserError, match=f"the row weights of {name} are not"):
        run([*base, *taken, *fine], "changed")


def test_a_file_of_rows_needs_a_mask_by_rows(run: Run, text_run: list[str], tmp_path: Path) -> None:
    run([*text_run, *IN_CONTEXT, "allocation.granularity=row", "pruner=wanda"])
    file = tmp_path / "run" / "allocation.json"
    taken = ["allocation=file", f"allocation.path={file}"]
    with pytest.raises(UserError, match=r"pruner\.mask=matrix decides otherwise"):
        make_plan(composed([*text_run, *taken, "pruner=sparsegpt"]), tmp_path / "sparsegpt")
    value = json.loads(file.read_text())
    name, counts = next(iter(value["rows"].items()))
    file.write_text(json.dumps(value | {"rows": {**value["rows"], f"{name}_typo": counts}}))
    with pytest.raises(UserError, match=f"{name}_typo is not a layer to prune here"):
        run([*text_run, *taken, "pruner=wanda"], "unknown")
    for wrong in ([counts[0] + 1, *counts[1:]], counts[1:], sum(counts), ["1", *counts[1:]]):
        value["rows"][name] = wrong
        file.write_text(json.dumps(value))
        with pytest.raises(UserError, match=f"the counts of rows of {name} are not"):
            run([*text_run, *taken, "pruner=wanda"], "changed")


def test_a_sweep_over_sparsities_measures_the_ramp_once(
    run: Run, text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    measure = budget_search.measure_marginals

    def counted(*parts: Any) -> Marginals:
        measured.append(parts)
        return measure(*parts)

    monkeypatch.setattr(budget_search, "measure_marginals", counted)
    run([*text_run, *IN_CONTEXT, "sparsity=0.6"], "low")
    assert len(measured) == 4
    run([*text_run, *IN_CONTEXT, "sparsity=0.7"], "high")
    assert len(measured) == 4 + 3
    run([*text_run, *IN_CONTEXT, "sparsity=0.7", "pruner=sparsegpt"], "other")
    assert len(measured) == 7 + 6, "another pruner is another context"
    run([*text_run, *IN_CONTEXT, "sparsity=0.7"], "again")
    assert len(measured) == 13
    assert kept(tmp_path / "again") == kept(tmp_path / "high")


def test_one_command_finds_and_prunes_what_a_search_with_few_iterations_finds(
    run: Run, text_run: list[str], tmp_path: Path
) -> None:
    fine = [*text_run, "pruner=admm", "propagate=layer", "batch_size=8", "cache_mode=off"]
    result = run([*fine, *IN_CONTEXT], "one")
    short = ["pruner.iterations=4", "pruner.schedule=3", "steps=[calibrate,allocate]"]
    run([*fine, *IN_CONTEXT, *short], "search")
    expected = run([*fine, "allocation=file", f"allocation.path={tmp_path / 'search' / 'allocation.json'}"])
    assert kept(tmp_path / "one") == kept(tmp_path / "search")
    assert result.metrics["pruned"] == expected.metrics["pruned"]


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize(
    ("pruner", "granularity"),
    [("wanda", "layer"), ("sparsegpt", "layer"), ("admm", "layer"), ("wanda", "row"), ("admm", "row")],
)
@pytest.mark.every_run("sparsegpt-layer-cpu", "admm-layer-disk", "wanda-row-disk")
def test_offloading_changes_nothing(
    run: Run, text_run: list[str], tmp_path: Path, offload: str, pruner: str, granularity: str
) -> None:
    method = [f"pruner={pruner}", f"allocation.granularity={granularity}"]
    base = [*TRAINED, f"cache={tmp_path / 'cache'}"] if pruner == "sparsegpt" else text_run
    overrides = [*base, *IN_CONTEXT, *method, "cache_mode=off"]
    expected = run(overrides, "plain")
    result = run([*overrides, f"runtime.offload={offload}"], "offloaded")
    allocations = [
        json.loads((tmp_path / name / "allocation.json").read_text()) for name in ("offloaded", "plain")
    ]
    assert allocations[0] == allocations[1]
    assert bool(allocations[0]["row_weights"]) == (pruner == "sparsegpt")
    assert result.metrics == expected.metrics
    assert result.model == expected.model


def test_a_fixed_mask_leaves_nothing_to_allocate(run: Run, text_run: list[str]) -> None:
    with pytest.raises(UserError, match="fixes every layer's sparsity"):
        run([*text_run, *IN_CONTEXT, "pruner.mask=2:4", "sparsity=0.5"])


def test_it_needs_the_calibration_step(run: Run, text_run: list[str]) -> None:
    with pytest.raises(UserError, match="allocation=in_context looks at data"):
        run([*text_run, *IN_CONTEXT, "steps=[allocate]"])


def test_a_pruner_of_the_whole_model_needs_no_allocation(run: Run, text_run: list[str]) -> None:
    with pytest.raises(UserError, match="allocation=in_context would change nothing"):
        run([*text_run, *IN_CONTEXT, "pruner=global_magnitude"])


@pytest.mark.parametrize("pruner", ["wanda", "admm"])
def test_masks_of_groups_whose_number_differs_by_layer(
    run: Run, text_run: list[str], tmp_path: Path, pruner: str
) -> None:
    overrides = [*text_run, *IN_CONTEXT, f"pruner={pruner}", "pruner.mask=n:4", "sparsity=0.5"]
    result = run([*overrides, "allocation.steps=6", "allocation.rate=0.1"])
    counts = json.loads((tmp_path / "run" / "allocation.json").read_text())
    of_four = {4 * keep / counts["sizes"][name] for name, keep in counts["keep"].items()}
    assert of_four <= {1.0, 2.0, 3.0, 4.0}
    assert len(of_four) > 1
    assert result.sparsity["prunable"] == pytest.approx(0.5, abs=0.05)


def test_the_result_says_what_was_scored_and_compared(run: Run, text_run: list[str]) -> None:
    result = run([*text_run, *IN_CONTEXT])
    assert result.scores is None
    assert result.allocation is not None
    assert result.allocation["granularity"] == "layer"
    assert set(result.allocation["details"]["losses"]) == {"last", "mean", "uniform", "even"}
    scored = run([*text_run, "score=first_order"], "scored")
    assert scored.scores is not None
    assert set(scored.scores["importance"]) == set(scored.sparsity["layers"])
