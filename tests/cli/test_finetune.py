"""The finetune step through the pipeline and through main.py: zeros stay, runs resume, two processes are as
good as one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule

from ecoflap.errors import NumericalError, UserError
from ecoflap.finetune.full import Full
from ecoflap.finetune.job import Job, Training
from ecoflap.storage.cache import code
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result
from ecoflap.storage.results.verification import verify
from tests.cli.conftest import ROOT

STEPS = "steps=[calibrate,score,allocate,prune,finetune,evaluate]"
Run = Callable[..., Result]
QUICK = [
    STEPS,
    "score=none",
    "model.save=true",
    "finetune.learning_rate=0.01",
    "finetune.log_every=1",
    "finetune.batch_size=2",
]


@pytest.fixture
def training(text_run: list[str]) -> list[str]:
    """Overrides of a run that fine-tunes the tiny language model on its six rows of tokens."""
    return [*text_run, *QUICK]


def main(overrides: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start main.py in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "main.py"), *overrides, f"hydra.run.dir={folder}"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What a process says until it ends well."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def curve(folder: Path) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads((folder / "finetune.json").read_text())["curve"]
    return points


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_loss_falls_and_zeros_stay_in_the_saved_file(
    training: list[str], run: Run, tmp_path: Path, method: str
) -> None:
    result = run([*training, f"finetune={method}", "finetune.steps=12"])
    points = curve(tmp_path / "run")
    assert points[-1]["loss"] < points[0]["loss"]
    assert result.metrics.keys() == {"dense", "pruned", "finetuned"}
    assert result.headline() == result.metrics["finetuned"]["token_perplexity"]["perplexity"]
    assert verify(tmp_path / "run") == []
    saved, masks = (
        weights(tmp_path / "run"),
        load_masks(tmp_path / "run" / "checkpoint" / "masks.bits"),
    )
    assert masks
    for name, mask in masks.items():
        assert not saved[name][~mask].any()
        assert saved[name][mask].any()
    assert result.data["finetune"] == {"name": "token_file", "samples": 6, "held_out": 0}


def test_accumulated_parts_are_one_batch(training: list[str], run: Run, tmp_path: Path) -> None:
    run([*training, "finetune.steps=4", "finetune.batch_size=4"], "whole")
    run([*training, "finetune.steps=4", "finetune.batch_size=2", "finetune.accumulation=2"], "parts")
    close(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.filterwarnings("error:.*checkpointing:FutureWarning")
def test_recomputed_activations_change_nothing(training: list[str], run: Run, tmp_path: Path) -> None:
    run([*training, "finetune.steps=3"], "kept")
    run([*training, "finetune.steps=3", "finetune.recompute=true"], "recomputed")
    close(weights(tmp_path / "kept"), weights(tmp_path / "recomputed"))


def test_bfloat16_products_leave_fp32_weights(training: list[str], run: Run, tmp_path: Path) -> None:
    run([*training, "finetune.steps=8", "finetune.precision=bfloat16"])
    points = curve(tmp_path / "run")
    assert points[-1]["loss"] < points[0]["loss"]
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}


def test_it_stops_early_and_keeps_the_best(training: list[str], run: Run, tmp_path: Path) -> None:
    result = run(
        [
            *training,
            "finetune.held_out=2",
            "finetune.every=1",
            "finetune.patience=2",
            "finetune.steps=200",
            "finetune.learning_rate=0.3",
        ]
    )
    points = curve(tmp_path / "run")
    held_out = {point["step"]: point["held_out_loss"] for point in points if "held_out_loss" in point}
    assert max(held_out) < 200
    best = min(held_out, key=lambda step: (held_out[step], step))
    assert max(held_out) - best == 2
    assert result.data["finetune"]["samples"] == 4


def test_a_killed_run_resumes_to_the_same_curve(training: list[str], tmp_path: Path) -> None:
    """kill -9 from outside as soon as there is a second checkpoint, which then is seldom whole."""
    overrides = [*training, "finetune.steps=120", "finetune.every=10", "finetune.held_out=2"]
    second, last = (tmp_path / "killed" / "finetune" / f"checkpoint-{step}" for step in (20, 120))
    whole, killed = (main(overrides, tmp_path / name) for name in ("whole", "killed"))
    while killed.poll() is None and not second.exists():
        time.sleep(0.01)
    killed.kill()
    output, _ = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, output
    assert not last.exists(), "it was killed before its training ended"
    assert not (tmp_path / "killed" / "finetune.json").exists()
    assert "resumes from" in finish(main(overrides, tmp_path / "killed"))
    finish(whole)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    expected, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_run_that_had_stopped_early_takes_no_further_step(
    training: list[str], run: Run, tmp_path: Path
) -> None:
    """It was ended between its last step and its end, as while its model was measured."""
    early = [
        "finetune.held_out=2",
        "finetune.every=1",
        "finetune.patience=2",
        "finetune.steps=200",
        "finetune.learning_rate=0.3",
    ]
    run([*training, *early])
    expected, saved = curve(tmp_path / "run"), weights(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    run([*training, *early])
    assert curve(tmp_path / "run") == expected
    assert all(torch.equal(weight, saved[name]) for name, weight in weights(tmp_path / "run").items())


def test_a_checkpoint_that_was_cut_short_is_not_resumed(
    training: list[str], run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*training, "finetune.steps=8", "finetune.every=2", "finetune.held_out=2"]
    run(overrides)
    expected, saved = curve(tmp_path / "run"), weights(tmp_path / "run")
    state = tmp_path / "run" / "finetune" / "checkpoint-8" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    (tmp_path / "run" / "result.json").unlink()
    with caplog.at_level(logging.INFO):
        run(overrides)
    assert any("checkpoint-8 was not written to the end" in message for message in caplog.messages)
    assert curve(tmp_path / "run") == expected
    assert all(torch.equal(weight, saved[name]) for name, weight in weights(tmp_path / "run").items())


def test_a_folder_that_was_moved_still_has_its_best_checkpoint(
    training: list[str], run: Run, tmp_path: Path
) -> None:
    diverging = ["finetune.held_out=2", "finetune.every=1", "finetune.steps=6", "finetune.learning_rate=0.3"]
    run([*training, *diverging])
    held_out = {point["step"]: point.get("held_out_loss", math.inf) for point in curve(tmp_path / "run")}
    assert min(held_out, key=held_out.__getitem__) < 6
    saved = weights(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    run([*training, *diverging], "elsewhere")
    assert all(torch.equal(weight, saved[name]) for name, weight in weights(tmp_path / "elsewhere").items())


def test_checkpoints_of_another_training_are_not_resumed(
    training: list[str], run: Run, tmp_path: Path
) -> None:
    run([*training, "finetune.steps=4", "sparsity=0.5"])
    run([*training, "finetune.steps=4", "sparsity=0.7", "resume=false"])
    run([*training, "finetune.steps=4", "sparsity=0.7"], "fresh")
    assert curve(tmp_path / "run") == curve(tmp_path / "fresh")


def test_checkpoints_of_other_data_are_not_resumed(training: list[str], run: Run, tmp_path: Path) -> None:
    """Masks of weights alone are the same whatever the data are."""
    given = next(one for one in training if one.startswith("calibration.path=")).partition("=")[2]
    file, tokens = tmp_path / "tokens.safetensors", load_file(given)
    overrides = [*training, "finetune.steps=4", "pruner=magnitude", f"calibration.path={file}"]
    save_file(tokens, file)
    run(overrides)
    (tmp_path / "run" / "result.json").unlink()
    save_file({name: rows.flip(0, 1).contiguous() for name, rows in tokens.items()}, file)
    run(overrides)
    run(overrides, "fresh")
    assert curve(tmp_path / "run") == curve(tmp_path / "fresh")


PRUNER = """
from dataclasses import dataclass

from typing_extensions import override

from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import Pruned


@dataclass(frozen=True)
class Scaled(Magnitude):
    mask: str = "row"
    name: str = "scaled"

    @override
    def __call__(self, weight, statistic, keep):
        pruned = super().__call__(weight, statistic, keep)
        return Pruned(pruned.weight * FACTOR, pruned.mask)
"""


def test_checkpoints_of_other_kept_weights_are_not_resumed(
    training: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pruner was edited after the run stopped, and its masks are the same."""
    monkeypatch.syspath_prepend(tmp_path)
    part = tmp_path / "scaled_pruner.py"
    overrides = [*training, "finetune.steps=4", "~pruner", "+pruner._target_=scaled_pruner.Scaled"]
    part.write_text(PRUNER.replace("FACTOR", "1.0"))
    run(overrides)
    (tmp_path / "run" / "result.json").unlink()
    part.write_text(PRUNER.replace("FACTOR", "0.25"))
    monkeypatch.delitem(sys.modules, "scaled_pruner")
    code._read.cache_clear()  # as in a new process
    run(overrides)
    run(overrides, "fresh")
    assert curve(tmp_path / "run") == curve(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["finetune.precision=half"], ["finetune.precision=half", "bfloat16"]),
        (["finetune.data=test"], ["finetune.data=test", "calibration"]),
        (["finetune.held_out=6"], ["finetune.held_out=6", "6 samples"]),
        (["device=cuda:1"], ["device=cuda:1", "CUDA_VISIBLE_DEVICES=1"]),
        (["finetune.learning_rate=0"], ["finetune.learning_rate"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    training: list[str], run: Run, tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        run([*training, "finetune.steps=1", *overrides])
    for word in words:
        assert word in str(refused.value)
    assert {file.name for file in (tmp_path / "run").iterdir()} <= {"ecoflap.log", "status.json"}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_old_libraries_are_refused_before_anything_is_computed(
    training: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    with monkeypatch.context() as older:
        older.setattr("ecoflap.finetune.training.TrainingArguments", object)
        with pytest.raises(UserError, match=r"needs transformers 4\.46 or newer"):
            run([*training, f"finetune={method}"])
    with monkeypatch.context() as older:
        older.delattr(FSDPModule, "set_reduce_scatter_unused_params", raising=False)
        older.setattr("ecoflap.finetune.training.size", lambda: 2)
        with pytest.raises(UserError, match=r"finetune\.shard=true needs a newer torch"):
            run([*training, f"finetune={method}", "finetune.shard=true"])
    assert {file.name for file in (tmp_path / "run").iterdir()} <= {"ecoflap.log", "status.json"}


def test_a_loss_that_explodes_ends_the_run(training: list[str], run: Run, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="learning_rate"):
        run([*training, "finetune.steps=8", "finetune.learning_rate=1e30", "finetune.clip=1e30"])
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("dtype", "rate"), [("float32", "1e38"), ("float16", "1e7")], ids=["float32", "float16"]
)
def test_weights_that_explode_in_the_last_step_end_the_run(
    training: list[str], run: Run, tmp_path: Path, dtype: str, rate: str, method: str
) -> None:
    """No loss is computed after it; in float16, it is the way back from fp32 that overflows."""
    last = ["finetune.steps=1", f"finetune={method}", f"finetune.learning_rate={rate}"]
    with pytest.raises(NumericalError, match=rf"weights in {dtype} after .* finetune\.learning_rate"):
        run([*training, f"model.dtype={dtype}", *last, STEPS.replace(",evaluate", "")])
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "checkpoint").exists()


@dataclass(frozen=True)
class Diverging(Full):
    """A finetuner of one's own, which does not look at what it leaves."""

    name: str = "diverging"

    def finetune(self, job: Job) -> Training:
        job.model.layers[-1].weight.data[0, 0] = float("nan")
        return Training(self.name, {}, 0, [])


def test_weights_that_a_finetuner_of_ones_own_breaks_end_the_run(
    training: list[str], run: Run, tmp_path: Path
) -> None:
    own = f"finetune._target_={Diverging.__module__}.{Diverging.__qualname__}"
    with pytest.raises(NumericalError, match=r"NaN or infinite weights in float32 after the training"):
        run([*training, own])
    assert not (tmp_path / "run" / "finetune.json").exists()


def test_outputs_that_explode_after_the_training_are_not_put_down_to_pruning(
    training: list[str], run: Run
) -> None:
    with pytest.raises(NumericalError, match=r"finetune\.learning_rate") as refused:
        run([*training, "finetune.steps=1", "finetune.learning_rate=1e30", "finetune.weight_decay=0"])
    assert "on token_perplexity" in str(refused.value)
    assert "prune less" not in str(refused.value)


def test_two_processes_are_one_with_twice_the_batch(training: list[str], run: Run, tmp_path: Path) -> None:
    options = [*training, "finetune.steps=3", "finetune.held_out=2", "finetune.every=3"]
    run([*options, "finetune.batch_size=2"], "one")
    both = [*options, "finetune.batch_size=1", f"hydra.run.dir={tmp_path / 'two'}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*launcher, str(ROOT / "main.py"), *both],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    close(weights(tmp_path / "one"), weights(tmp_path / "two"))
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [point.keys() for point in one] == [point.keys() for point in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert verify(tmp_path / "two") == []
    assert not (tmp_path / "two" / "processes").exists()


def test_reconstruction_goes_through_the_pipeline(text_run: list[str], run: Run, tmp_path: Path) -> None:
    result = run([*text_run, STEPS, "score=none", "model.save=true", "finetune=reconstruct"])
    assert [point["step"] for point in curve(tmp_path / "run")] == [1.0, 2.0]
    assert verify(tmp_path / "run") == []
    assert result.metrics["finetuned"] != result.metrics["pruned"]
