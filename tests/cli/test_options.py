"""Every option of every config group composes, and runs on something tiny."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ecoflap.errors import UserError
from ecoflap.run import pipeline
from ecoflap.run.config import package_file
from ecoflap.run.instantiate import build
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result, verify
from tests.cli.conftest import ROOT, WORDS, composed

Run = Callable[..., Result]
GROUPS = {
    group.name: sorted(file.stem for file in group.glob("*.yaml"))
    for group in (ROOT / "conf").iterdir()
    if group.is_dir() and group.name not in ("sweep", "preset")
}


def uniform(overrides: list[str]) -> list[str]:
    return [override for override in overrides if not override.startswith("score.")] + ["score=none"]


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group, options in GROUPS.items() for option in options]
)
def test_every_option_composes_and_names_a_class(group: str, option: str) -> None:
    config = composed([f"{group}={option}"])
    if group != "cluster":  # which says only where jobs go
        members = config[group].tasks.values() if "tasks" in config[group] else [config[group]]
        assert all(member.get("name") is not None for member in members) or group == "tracking"
    first = (ROOT / "conf" / group / f"{option}.yaml").read_text()
    assert "# ecoflap run" in first, "each option shows its command line"


def test_a_text_of_ones_own_is_not_called_wikitext(tiny_llama: Path, run: Run, tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(5)
    for name in ("train", "test"):
        picks = torch.randint(len(WORDS), (200,), generator=draws).tolist()
        (tmp_path / f"{name}.txt").write_text(" ".join(WORDS[pick] for pick in picks))
    given = ["model=causal_lm", f"model.path={tiny_llama}", "score=none", "pruner.mask=row", "tracking=none"]
    given += ["device=cpu", f"cache={tmp_path / 'cache'}", "allocation=water_filling"]
    texts = [
        "calibration=text",
        f"calibration.path={tmp_path / 'train.txt'}",
        "calibration.samples=2",
        "calibration.sequence_length=16",
        "task=text",
        f"task.path={tmp_path / 'test.txt'}",
        "task.sequence_length=16",
    ]
    result = run([*given, *texts])
    assert result.data["calibration"]["name"] == "text"
    assert list(result.metrics["pruned"]) == ["text"]


@pytest.mark.parametrize("group", ["calibration", "task"])
def test_a_text_of_ones_own_needs_a_file(group: str) -> None:
    with pytest.raises(UserError, match=rf"{group}=text is a text of your own: .* {group}\.path=FILE"):
        build(group, composed([f"{group}=text"])[group]).check_data(group)


@pytest.mark.parametrize(
    "measure", ["gradient", "gradient_norm", "weight_gradient", "weight_gradient_square"]
)
def test_first_order_measures(run: Run, text_run: list[str], measure: str) -> None:
    result = run([*text_run, "score=first_order", f"score.measure={measure}"])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("granularity", ["layer", "block", "tower", "model"])
@pytest.mark.parametrize("scope", ["model", "tower"])
@pytest.mark.parametrize("aggregate", ["sum", "average"])
@pytest.mark.every_run("*-model-model", "*-tower-layer")
def test_allocation_choices(
    run: Run, text_run: list[str], granularity: str, scope: str, aggregate: str
) -> None:
    choices = [
        f"allocation.granularity={granularity}",
        f"allocation.scope={scope}",
        f"allocation.aggregate={aggregate}",
    ]
    result = run([*text_run, *choices, "steps=[calibrate,score,allocate,prune]", "allocation.cap=0.75"])
    layers = result.sparsity["layers"].values()
    assert sum(layer["kept"] for layer in layers) == int(sum(layer["size"] for layer in layers) * 4 // 10)
    assert all(layer["kept"] >= layer["size"] // 4 for layer in layers)


@pytest.mark.parametrize(
    ("pruner", "mask"),
    [
        ("magnitude", "row"),
        ("magnitude", "matrix"),
        ("wanda", "row"),
        ("wanda", "matrix"),
        ("sparsegpt", "matrix"),
        ("ria", "row"),
        ("ria", "matrix"),
        ("admm", "row"),
        ("admm", "matrix"),
    ],
)
def test_pruners_and_masks(run: Run, text_run: list[str], pruner: str, mask: str) -> None:
    result = run([*text_run, f"pruner={pruner}", f"pruner.mask={mask}"])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)
    assert (
        result.metrics["pruned"]["token_perplexity"]["perplexity"]
        != result.metrics["dense"]["token_perplexity"]["perplexity"]
    )


@pytest.mark.parametrize("pruner", ["magnitude", "wanda", "ria", "sparsegpt", "admm"])
@pytest.mark.parametrize(("mask", "sparsity"), [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.75)])
@pytest.mark.every_run("2:4-*", "*-admm")
def test_n_of_m_masks(
    run: Run, text_run: list[str], pruner: str, mask: str, sparsity: float, tmp_path: Path
) -> None:
    run(
        [
            *uniform(text_run),
            f"pruner={pruner}",
            f"pruner.mask={mask}",
            f"sparsity={sparsity}",
            "model.save=true",
        ]
    )
    n, m = map(int, mask.split(":"))
    for kept in load_masks(tmp_path / "run" / "checkpoint" / "masks.bits").values():
        assert (kept.view(-1, m).sum(1) == n).all()


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt", "admm"])
def test_the_allocation_chooses_the_n_of_each_layer(
    run: Run, text_run: list[str], pruner: str, tmp_path: Path
) -> None:
    result = run([*text_run, f"pruner={pruner}", "pruner.mask=n:4", "allocation.cap=1", "model.save=true"])
    kept = load_masks(tmp_path / "run" / "checkpoint" / "masks.bits").values()
    in_groups = [mask.view(-1, 4).sum(1) for mask in kept]
    assert all(bool((counts == counts[0]).all()) for counts in in_groups)
    assert len({int(counts[0]) for counts in in_groups}) > 1
    assert result.sparsity["total"] == "groups"
    assert 0.6 <= result.sparsity["prunable"] < 0.65


@pytest.mark.parametrize(
    "options",
    [["pruner.refine=swaps"], ["pruner.repair=true"], ["pruner.refine=swaps", "pruner.repair=true"]],
)
@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_refined_and_repaired(run: Run, text_run: list[str], options: list[str], propagate: str) -> None:
    shared = [*uniform(text_run), "pruner=wanda", f"propagate={propagate}"]
    plain, refined = run(shared, "plain"), run([*shared, *options], "refined")
    layers = [result.sparsity["layers"] for result in (plain, refined)]
    assert all(layers[0][name]["kept"] == layer["kept"] for name, layer in layers[1].items())
    assert refined.metrics["pruned"] != plain.metrics["pruned"]


def test_text_from_a_file(run: Run, text_run: list[str], text_file: Path, tmp_path: Path) -> None:
    shared = [override for override in text_run if not override.startswith(("calibration", "task"))]
    text = [
        "calibration=wikitext2",
        f"calibration.path={text_file}",
        "calibration.sequence_length=20",
        "calibration.samples=4",
    ]
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(text_file.read_text() + "\n")  # a copy of the same text would be refused
    result = run([*shared, *text, "task=wikitext2", f"task.path={held_out}", "task.sequence_length=50"])
    assert result.metrics["dense"]["wikitext2"]["rows"] == 12


@pytest.mark.parametrize("last", ["calibrate", "score", "allocate", "prune", "evaluate"])
def test_stopping_after_a_step(run: Run, text_run: list[str], last: str, tmp_path: Path) -> None:
    order = ["calibrate", "score", "allocate", "prune", "evaluate"]
    steps = order[: order.index(last) + 1]
    result = run([*text_run, f"steps=[{','.join(steps)}]"])
    folder = tmp_path / "run"
    assert (folder / "scores.json").exists() == ("score" in steps)
    assert (folder / "allocation.json").exists() == ("allocate" in steps)
    assert (result.sparsity["prunable"] > 0.5) == ("prune" in steps)
    assert set(result.metrics) == ({"dense", "pruned"} if "evaluate" in steps else set())


def test_a_saved_allocation_replaces_score_and_allocate(
    run: Run, text_run: list[str], tmp_path: Path
) -> None:
    first = run([*text_run, "model.save=true"], "first")
    shared = uniform(text_run)[:-1]
    again = run(
        [
            *shared,
            "allocation=file",
            f"allocation.path={tmp_path / 'first' / 'allocation.json'}",
            "model.save=true",
        ],
        "again",
    )
    assert again.sparsity == {**first.sparsity, "coarse": "file"}
    assert "score" not in again.steps
    assert again.metrics == first.metrics


def test_an_allocation_of_another_total_is_said_to_be_one(
    run: Run, text_run: list[str], tmp_path: Path
) -> None:
    run([*text_run, "steps=[calibrate,score,allocate]"], "first")
    value = json.loads((tmp_path / "first" / "allocation.json").read_text())
    layer = max(value["keep"], key=value["keep"].get)
    value["keep"][layer] -= 100
    (tmp_path / "edited.json").write_text(json.dumps(value))
    overrides = [*uniform(text_run)[:-1], "allocation=file", f"allocation.path={tmp_path / 'edited.json'}"]
    with pytest.raises(UserError, match=r"allocation\.total=as_given"):
        run(overrides, "refused")
    taken = run([*overrides, "allocation.total=as_given"], "taken")
    assert taken.sparsity["total"] == "as_given"
    sizes = sum(value["sizes"].values())
    assert taken.sparsity["prunable"] == pytest.approx(1 - sum(value["keep"].values()) / sizes)
    assert taken.sparsity["target"] == 0.6


def test_an_allocation_can_be_used_again_in_its_own_folder(
    run: Run, text_run: list[str], tmp_path: Path
) -> None:
    first = run(text_run, "same")
    again = run(
        [
            *uniform(text_run)[:-1],
            "allocation=file",
            f"allocation.path={tmp_path / 'same' / 'allocation.json'}",
            "resume=false",
        ],
        "same",
    )
    assert again.sparsity == {**first.sparsity, "coarse": "file"}


def test_the_saved_checkpoint_loads_and_verifies(run: Run, text_run: list[str], tmp_path: Path) -> None:
    result = run([*text_run, "model.save=true"])
    folder = tmp_path / "run"
    module = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    for name, layer in result.sparsity["layers"].items():
        assert int((module.get_parameter(name) == 0).sum()) == layer["zeros"]
    assert verify(folder) == []
    assert not (folder / "checkpoint.partial").exists()


def test_the_same_command_gives_the_same_numbers(run: Run, text_run: list[str]) -> None:
    first, again = run([*text_run, "cache_mode=off"], "a"), run([*text_run, "cache_mode=off"], "b")
    assert json.dumps(first.metrics) == json.dumps(again.metrics)
    assert first.sparsity == again.sparsity


def test_scores_and_dense_metrics_come_from_the_store_the_second_time(
    run: Run, text_run: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = run(text_run, "a")
    caplog.clear()
    with caplog.at_level("INFO"):
        again = run([*text_run, "sparsity=0.4"], "b")
    assert again.metrics["dense"] == first.metrics["dense"]
    assert sum("saved" in message for message in caplog.messages) >= 2


def test_towers_and_skipped_layers(run: Run, text_run: list[str]) -> None:
    result = run([*text_run, "towers=[language]", "skip_layers=[down_proj]"])
    assert len(result.sparsity["layers"]) == 12
    assert not any("down_proj" in name for name in result.sparsity["layers"])


def test_inspect_needs_no_weights(
    tiny_llama: Path, text_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)
    assert (
        pipeline.run(
            composed([*text_run, f"model.path={tmp_path}", "inspect=true", "skip_layers=[v_proj]"]), tmp_path
        )
        is None
    )
    shown = capsys.readouterr().out
    for word in ("0-1.mlp.down_proj.weight", "matches skip_layers", "embedding", "language"):
        assert word in shown
    assert not (tmp_path / "result.json").exists()


def test_the_cache_knows_the_prompt_and_the_settings_of_the_model(run: Run, tmp_path: Path) -> None:
    shared = ["tracking=none", "steps=[evaluate]", "task.limit=60", f"cache={tmp_path / 'cache'}"]
    odd = run([*shared, "model.prompt='what is {}'"], "odd").metrics["dense"]["easy_vqa"]
    plain = run(shared, "plain").metrics["dense"]["easy_vqa"]
    assert plain["accuracy"] > odd["accuracy"]
    folder = shutil.copytree(package_file("mini/blip2"), tmp_path / "other")
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"]["layer_norm_eps"] = 10.0
    (folder / "config.json").write_text(json.dumps(settings))
    other = run([*shared, f"model.path={folder}"], "other").metrics["dense"]["easy_vqa"]
    assert other["accuracy"] < plain["accuracy"]
