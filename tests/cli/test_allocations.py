"""Allocations without scores, as they are typed: what each looks at and what runs share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoflap.blocks import walk
from ecoflap.errors import UserError
from ecoflap.run import pipeline
from ecoflap.run.plan import make_plan
from ecoflap.storage.results import Result
from ecoflap.sweeps.report.methods import name_methods
from ecoflap.sweeps.report.runs import read_runs
from tests.cli.conftest import composed

Run = Callable[..., Result]
LOOKS_AT_DATA = ("owl", "dlp", "lsa", "atp")
CHOICES = (*LOOKS_AT_DATA, "alpha_pruning", "er", "multiflow")


@pytest.fixture
def unscored(text_run: list[str]) -> list[str]:
    return [override for override in text_run if not override.startswith("score.")]


def read(folder: Path, name: str = "allocation") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


@pytest.mark.parametrize("name", CHOICES)
def test_each_prunes_to_the_target(run: Run, unscored: list[str], name: str, tmp_path: Path) -> None:
    result = run([*unscored, f"allocation={name}", "sparsity=0.7"])
    layers = result.sparsity["layers"].values()
    assert sum(layer["kept"] for layer in layers) == int(sum(layer["size"] for layer in layers) * 3 // 10)
    assert len({round(layer["sparsity"], 2) for layer in layers}) > 1
    assert result.sparsity["coarse"] == name
    assert "score" not in result.steps
    assert not (tmp_path / "run" / "scores.json").exists()


@pytest.mark.parametrize("name", LOOKS_AT_DATA)
def test_those_that_look_at_data_need_some(unscored: list[str], name: str, tmp_path: Path) -> None:
    steps = ["steps=[allocate,prune]", "pruner=magnitude"]
    with pytest.raises(UserError, match=rf"allocation={name} looks at data, so allocate needs calibrate"):
        make_plan(composed([*unscored, f"allocation={name}", *steps]), tmp_path)


@pytest.mark.parametrize("name", ["alpha_pruning", "er", "multiflow"])
def test_the_others_need_none(run: Run, unscored: list[str], name: str) -> None:
    result = run([*unscored, f"allocation={name}", "pruner=magnitude", "steps=[allocate,prune]"])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("name", CHOICES)
def test_masks_that_fix_every_sparsity_are_refused(unscored: list[str], name: str, tmp_path: Path) -> None:
    mask = ["pruner.mask=2:4", "sparsity=0.5"]
    with pytest.raises(UserError, match=r"pruner\.mask=2:4 fixes every layer's sparsity"):
        make_plan(composed([*unscored, f"allocation={name}", *mask]), tmp_path)


def test_fixed_masks_take_a_file_of_their_sparsity(run: Run, unscored: list[str], tmp_path: Path) -> None:
    mask = ["pruner.mask=2:4", "sparsity=0.5"]
    first = run([*unscored, *mask, "score=none"], "first")
    file = ["allocation=file", f"allocation.path={tmp_path / 'first' / 'allocation.json'}"]
    again = run([*unscored, *mask, *file], "again")
    assert (again.metrics, again.sparsity["layers"]) == (first.metrics, first.sparsity["layers"])


@pytest.mark.parametrize("granularity", ["layer", "row"])
def test_fixed_masks_refuse_a_file_of_others(
    run: Run, unscored: list[str], granularity: str, tmp_path: Path
) -> None:
    run([*unscored, "sparsity=0.5", "allocation=er", "steps=[allocate,prune]", "pruner=magnitude"], "first")
    value = read(tmp_path / "first")
    if granularity == "row":  # the same share of each layer, but not of each of its rows
        value["keep"] = {name: size // 2 for name, size in value["sizes"].items()}
        value["rows"] = {name: [] for name in value["sizes"]}
    (tmp_path / "allocation.json").write_text(json.dumps(value | {"granularity": "model"}))
    file = ["allocation=file", f"allocation.path={tmp_path / 'allocation.json'}"]
    with pytest.raises(UserError, match=r"pruner\.mask=2:4 fixes every layer's sparsity"):
        make_plan(composed([*unscored, "pruner.mask=2:4", "sparsity=0.5", *file]), tmp_path)


@pytest.mark.parametrize("given", ["0.1", "1", "auto"])
def test_a_free_parameter_is_a_number_or_auto(
    run: Run, unscored: list[str], given: str, tmp_path: Path
) -> None:
    steps = "steps=[calibrate,allocate]"
    run([*unscored, "allocation=owl", f"allocation.spread={given}", steps])
    details = read(tmp_path / "run")["details"]
    if given == "auto":
        assert details["losses"][f"{details['spread']:g}"] == min(details["losses"].values())
    else:
        assert details["spread"] == float(given)
        assert "losses" not in details


@pytest.mark.parametrize("given", ["null", "some", "true", "[0.1]", "-1"])
def test_other_values_are_refused(unscored: list[str], given: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"allocation\.spread"):
        make_plan(composed([*unscored, "allocation=owl", f"allocation.spread={given}"]), tmp_path)


@pytest.mark.parametrize("choice", ["owl", "dlp", "lsa", "alpha_pruning"])
def test_a_second_sparsity_measures_nothing(
    run: Run, unscored: list[str], choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = "steps=[calibrate,allocate]"
    run([*unscored, f"allocation={choice}", "sparsity=0.5", steps], "first")
    monkeypatch.setattr(walk, "flows", None)  # a walk over the blocks would fail
    run([*unscored, f"allocation={choice}", "sparsity=0.7", steps], "second")
    assert read(tmp_path / "first")["details"]["values"] == read(tmp_path / "second")["details"]["values"]


@pytest.mark.parametrize("choice", ["owl", "dlp", "lsa", "alpha_pruning"])
@pytest.mark.every_run("owl", "alpha_pruning")
def test_a_second_pruner_measures_nothing(
    run: Run, unscored: list[str], choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*unscored, f"allocation={choice}", "steps=[calibrate,allocate]"]
    run([*overrides, "pruner=wanda"], "first")
    monkeypatch.setattr(walk, "flows", None)  # a walk over the blocks would fail
    run([*overrides, "pruner=sparsegpt"], "second")
    assert read(tmp_path / "first")["details"]["values"] == read(tmp_path / "second")["details"]["values"]


@pytest.mark.parametrize(
    "allocation", [["owl", "allocation.spread=auto"], ["atp"], ["neuronal"]], ids=["owl", "atp", "neuronal"]
)
@pytest.mark.every_run("owl", "neuronal")
def test_trials_of_another_pruner_are_its_own(
    run: Run, unscored: list[str], allocation: list[str], tmp_path: Path
) -> None:
    choice, *options = allocation
    overrides = [*unscored, f"allocation={choice}", *options, "steps=[calibrate,allocate]"]
    run([*overrides, "pruner=wanda"], "first")
    run([*overrides, "pruner=magnitude"], "shared")
    run([*overrides, "pruner=magnitude", "cache_mode=off"], "alone")
    assert read(tmp_path / "shared") == read(tmp_path / "alone") != read(tmp_path / "first")


def test_the_same_choice_again_tries_nothing(
    run: Run, unscored: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*unscored, "allocation=atp", "steps=[calibrate,allocate]"]
    run(overrides, "first")
    monkeypatch.setattr(walk, "flows", None)
    run(overrides, "second")
    assert read(tmp_path / "first") == read(tmp_path / "second")


def test_a_report_calls_runs_by_their_allocation(run: Run, unscored: list[str], tmp_path: Path) -> None:
    steps = "steps=[calibrate,score,allocate,prune]"
    for number, choice in enumerate(
        (
            ["allocation=owl"],
            ["allocation=owl", "allocation.spread=0.2"],
            ["allocation=er"],
            ["score=none"],
            ["score=first_order"],
        )
    ):
        run([*unscored, *choice, steps], f"{number}")
    labels = {method.label for method in name_methods(read_runs(tmp_path))}
    assert labels == {
        "wanda, owl, allocation.spread=0.08",
        "wanda, owl, allocation.spread=0.2",
        "wanda, er",
        "wanda, uniform",
        "wanda, first order",
    }


@pytest.mark.parametrize("name", ["owl", "lsa", "atp"])
@pytest.mark.every_run("lsa")
def test_towers_of_a_vision_language_model_reach_the_target_by_themselves(
    run: Run, name: str, tmp_path: Path
) -> None:
    shared = ["tracking=none", f"cache={tmp_path / 'cache'}", "steps=[calibrate,allocate,prune]"]
    small = ["calibration.samples=4", "allocation.samples=4"]
    result = run([*shared, *small, f"allocation={name}", "sparsity=0.7"])
    assert len(result.sparsity["towers"]) > 1
    for sparsity in result.sparsity["towers"].values():
        assert sparsity == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("choice", [["lsa", "spread=auto"], ["alpha_pruning", "epsilon=0.2"]])
def test_blocks_may_be_away_while_nobody_uses_them(
    run: Run, unscored: list[str], offload: str, choice: list[str], tmp_path: Path
) -> None:
    name, option = choice
    overrides = [*unscored, f"allocation={name}", f"allocation.{option}", "steps=[calibrate,allocate,prune]"]
    here = run([*overrides, "cache_mode=off"], "here")
    away = run([*overrides, "cache_mode=off", f"runtime.offload={offload}"], "away")
    assert away.sparsity == here.sparsity
    assert read(tmp_path / "away") == read(tmp_path / "here")


def test_tamp_without_such_a_tower_is_refused_before_the_dense_evaluation(
    run: Run, text_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[object] = []
    monkeypatch.setattr(pipeline, "evaluate_dense", lambda *given: evaluated.append(given))
    options = [one for one in text_run if not one.startswith("score")]
    with pytest.raises(UserError, match="allocation=tamp needs a pruned tower"):
        run([*options, "allocation=tamp", "score=none"])
    assert not evaluated


def test_tamp_in_the_tower_that_reads_text_and_pictures(run: Run, tmp_path: Path) -> None:
    plan = ["model=blip2_mini", "allocation=tamp", "score=none", "tracking=none", "device=cpu"]
    result = run([*plan, "calibration.samples=4", "steps=[calibrate,allocate,prune]"])
    values = read(tmp_path / "run")["details"]["values"]
    assert values
    assert all(name.startswith("language_model.encoder.") for name in values)
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-4)
    assert result.sparsity["coarse"] == "tamp"


def test_scores_alone_are_those_of_the_allocation_that_goes_by_scores(tmp_path: Path) -> None:
    plan = make_plan(composed(["steps=[calibrate,score]"]), tmp_path)
    assert plan.scorer is not None
    assert (plan.scorer.name, plan.record["allocation"]["name"]) == ("zeroth_order", "water_filling")
