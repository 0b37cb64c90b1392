"""Bad input: one clear error that names the valid choices, before work is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecoflap.errors import NumericalError, UserError
from ecoflap.storage.results import Result

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sparsity=1.0"], ["sparsity=1.0", "[0, 1)"]),
        (["sparsity=-0.1"], ["sparsity=-0.1"]),
        (["allocation.cap=0.5"], ["allocation.cap=0.5", "sparsity=0.6"]),
        (["allocation.granularity=blocks"], ["allocation.granularity=blocks", "layer, block, tower, model"]),
        (["score.samples=many"], ["score.samples", "many", "whole number"]),
        (["+score.sample=3"], ["score.sample", "samples"]),
        (["score=first_order", "score.measure=grad"], ["score.measure=grad", "gradient"]),
        (["pruner.mask=diagonal"], ["pruner.mask=diagonal", "row, matrix, or N:M"]),
        (["pruner.mask=4:2"], ["pruner.mask=4:2"]),
        (["pruner=sparsegpt", "pruner.mask=row"], ["pruner.mask=row", "matrix"]),
        (["pruner.mask=2:4"], ["pruner.mask=2:4", "sparsity=0.5"]),
        (["pruner.mask=2:4", "sparsity=0.5"], ["use allocation=auto score=auto"]),
        (["pruner.mask=3:5", "sparsity=0.4", "score=none"], ["pruner.mask=3:5", "16 columns"]),
        (["towers=[vision]"], ["vision", "language"]),
        (["skip_layers=[layers.7]"], ["layers.7", "matches none"]),
        (["skip_layers=['(']"], ["'('", "regular expression"]),
        (["steps=[prune]"], ["prune", "allocate"]),
        (["steps=[score,calibrate]"], ["in this order"]),
        (["steps=[tune]"], ["tune", "calibrate, score, allocate, prune, finetune, evaluate"]),
        (["steps=[calibrate,allocate]"], ["allocate needs score"]),
        (["model.path=./nowhere"], ["model.path=./nowhere", "no such folder"]),
        (["model.path=nobody/nothing"], ["model.path=nobody/nothing"]),
        (["model.dtype=float8"], ["model.dtype=float8", "bfloat16"]),
        (["device=tpu9"], ["device=tpu9", "cpu"]),
        (["calibration.path=nowhere.safetensors"], ["calibration.path=nowhere.safetensors"]),
        (["calibration.key=calib"], ["calibration.key=calib", "calibration"]),
        (["task.key=floats"], ["task.key=floats", "integer"]),
        (["task=easy_vqa"], ["task=easy_vqa", "wikitext2"]),
        (["allocation=file", "allocation.path=nowhere.json"], ["allocation.path=nowhere.json"]),
        (["cache_mode=sometimes"], ["cache_mode=sometimes", "readonly"]),
        (["batch_size=0"], ["batch_size=0"]),
        (["score.samples=0"], ["score.samples=0"]),
        (["score.batch_size=0"], ["score.batch_size=0"]),
        (["score.eps=0"], ["score.eps=0"]),
        (["calibration.samples=0"], ["calibration.samples=0"]),
        (["calibration.samples=-1"], ["calibration.samples=-1"]),
        (["task.limit=0"], ["task.limit=0"]),
        (["task.batch_size=0"], ["task.batch_size=0"]),
        (["device=meta"], ["device=meta"]),
        (["calibration=easy_vqa"], ["calibration=easy_vqa", "reads only text"]),
        (["tracking=wandb", "tracking.mode=loud"], ["tracking.mode=loud", "offline"]),
    ],
)
def test_one_clear_error(
    run: Run, text_run: list[str], overrides: list[str], words: list[str], tmp_path: Path
) -> None:
    replaced = tuple(
        override.split("=")[0] for override in overrides if override.startswith(("task=", "calibration="))
    )
    shared = [override for override in text_run if not (replaced and override.startswith(replaced))]
    with pytest.raises(UserError) as caught:
        run([*shared, *overrides])
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_missing_value_names_its_key(run: Run, text_run: list[str]) -> None:
    with pytest.raises(UserError, match=r"task\.key"):
        run([override for override in text_run if not override.startswith("task.key")])


def test_text_that_is_not_there(run: Run, text_run: list[str], text_file: Path) -> None:
    shared = [override for override in text_run if not override.startswith(("calibration", "task"))]
    with pytest.raises(UserError, match=r"text\.txt"):
        run([*shared, f"task.path={text_file.parent / 'test.txt'}", f"calibration.path={text_file}"])
    with pytest.raises(UserError, match=r"task\.path=FILE"):
        run([*shared, f"calibration.path={text_file}"])
    with pytest.raises(UserError, match="sequence_length"):
        run([*shared, f"task.path={text_file}", f"calibration.path={text_file}", "task.sequence_length=5000"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_refused(
    run: Run, text_run: list[str], tiny_llama: Path, tmp_path: Path, value: float
) -> None:
    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        run([*text_run, f"model.path={broken}"])


def test_an_allocation_for_another_model(run: Run, text_run: list[str], tmp_path: Path) -> None:
    run([*text_run, "steps=[calibrate,score,allocate]"], "first")
    shared = [override for override in text_run if not override.startswith("score.")]
    with pytest.raises(UserError, match="skip_layers"):
        run(
            [
                *shared,
                "allocation=file",
                f"allocation.path={tmp_path / 'first' / 'allocation.json'}",
                "skip_layers=[q_proj]",
            ]
        )


def test_a_model_that_does_not_fit(run: Run, text_run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Full:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    with pytest.raises(UserError, match=r"GiB free.*model\.dtype=bfloat16"):
        run(text_run)


def test_the_loss_overflows(run: Run, text_run: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    huge = shutil.copytree(tiny_llama, tmp_path / "huge")
    state = load_file(huge / "model.safetensors")
    state["lm_head.weight"] = torch.full_like(state["lm_head.weight"], 3e38)
    save_file(state, huge / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="loss"):
        run([*text_run, f"model.path={huge}", "steps=[calibrate,score]"])


def test_a_checkpoint_that_lacks_weights(
    run: Run, text_run: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    cut = shutil.copytree(tiny_llama, tmp_path / "cut")
    state = load_file(cut / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, cut / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks 1 weights of its model, such as model.layers\.1\.mlp\.up_proj"
    ):
        run([*text_run, f"model.path={cut}"])


def test_a_weight_file_that_is_cut_off(
    run: Run, text_run: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    cut = shutil.copytree(tiny_llama, tmp_path / "cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UserError, match=r"model\.safetensors is cut off: it has [\d,]+ of [\d,]+ bytes; copy the file anew"
    ):
        run([*text_run, f"model.path={cut}"])


def test_an_allocation_for_another_sparsity(run: Run, text_run: list[str], tmp_path: Path) -> None:
    run([*text_run, "steps=[calibrate,score,allocate]"], "first")
    with pytest.raises(UserError, match=r"set sparsity=0\.6"):
        run(
            [
                *text_run,
                "allocation=file",
                f"allocation.path={tmp_path / 'first' / 'allocation.json'}",
                "sparsity=0.3",
            ]
        )


def test_a_prompt_without_a_place_for_the_question(run: Run) -> None:
    for prompt in ("hello", "{} {}", "{name}"):
        with pytest.raises(UserError, match=r"model\.prompt"):
            run([f"model.prompt='{prompt}'", "tracking=none"])


def test_text_calibration_of_a_model_that_reads_images(run: Run, text_file: Path) -> None:
    with pytest.raises(UserError, match="calibration=wikitext2"):
        run(
            [
                "calibration=wikitext2",
                f"calibration.path={text_file}",
                "tracking=none",
                "task.limit=10",
                "cache_mode=off",
            ]
        )


def test_a_failing_run_leaves_no_earlier_result_in_its_folder(
    run: Run, text_run: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    run([*text_run, "model.save=true"])
    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="damaged"):
        run([*text_run, f"model.path={broken}", "resume=false"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["status.json"]


def test_a_refused_run_leaves_an_earlier_result_alone(run: Run, text_run: list[str], tmp_path: Path) -> None:
    run(text_run)
    with pytest.raises(UserError, match="vision"):
        run([*text_run, "towers=[vision]", "resume=false"])
    assert (tmp_path / "run" / "result.json").exists()
