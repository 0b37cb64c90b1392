"""A run that was stopped, however and whenever, goes on when it is started again, and ends with the same
weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from ecoflap.errors import UserError
from ecoflap.prune import driver
from ecoflap.run import pipeline
from ecoflap.run.folder import claimed
from ecoflap.storage.cache import code
from ecoflap.storage.file_names import LEASE
from ecoflap.storage.results import Result, environment, verify
from tests.abandoned import abandoned
from tests.cli.conftest import composed

Run = Callable[..., Result]
PRUNER = """
from dataclasses import dataclass

from ecoflap.prune.magnitude import Magnitude


@dataclass(frozen=True)
class Own(Magnitude):
    name: str = "own"
"""


def weights(folder: Path) -> str:
    """A hash of every tensor of the saved model and of its masks; the files' own headers have no fixed
    order.
    """
    digest, files = hashlib.sha256(), sorted((folder / "checkpoint").glob("*.safetensors"))
    assert files
    for file in files:
        for name, tensor in sorted(load_file(file).items()):
            digest.update(name.encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return found


def test_a_finished_run_is_not_done_again(
    run: Run, text_run: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(text_run)
    ended = status(tmp_path / "run")
    assert ended["state"] == "done"
    stamp = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        second = run([*text_run, "cache_mode=readonly"])  # where values are kept is no difference
    assert second.to_json() == first.to_json()
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == stamp
    assert any("finished already" in message for message in caplog.messages)
    assert not (tmp_path / "run" / LEASE).exists()
    assert status(tmp_path / "run") == ended, "its times are still those of the work"


def test_a_result_of_other_code_is_said_to_be_one(
    run: Run, text_run: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(text_run)
    monkeypatch.setattr(sys.modules["ecoflap.storage.results.environment"], "package_hash", lambda: "edited")
    with caplog.at_level(logging.INFO):
        run(text_run)
    warned = [
        record
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name.startswith("ecoflap")
    ]
    (warning,) = [record.message for record in warned]
    assert "made by other code (code: " in warning
    assert "-> edited" in warning


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The package's warnings since the last call."""
    found = [one for one in caplog.records if one.levelno == logging.WARNING]
    caplog.clear()
    return [one.getMessage() for one in found if one.name.startswith("ecoflap")]


def test_a_record_names_the_code_that_ran(
    run: Run, text_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that which is there when the run ends."""
    module, conclude = sys.modules["ecoflap.storage.results.environment"], pipeline.conclude
    there, commit = ["started"], {"commit": "started", "dirty": False}
    monkeypatch.setattr(module, "package_hash", lambda: there[0])
    monkeypatch.setattr(module, "git_state", lambda project: {**commit, "commit": there[0]})

    def edited(*given: Any) -> Result:
        there[0] = "edited"
        return conclude(*given)

    monkeypatch.setattr(pipeline, "conclude", edited)
    environment.cache_clear()
    result = run(text_run)
    environment.cache_clear()
    assert result.versions["code"] == "started"
    assert result.git == commit


def test_a_result_of_a_part_or_weights_that_changed_is_said_to_be_one(
    run: Run,
    text_run: list[str],
    tiny_llama: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    model, part = Path(shutil.copytree(tiny_llama, tmp_path / "lm")), tmp_path / "stale_pruner.py"
    part.write_text(PRUNER)
    pruner = [
        "~pruner",
        "+pruner._target_=stale_pruner.Own",
        "score=none",
        "steps=[calibrate,allocate,prune]",
    ]
    overrides = [*text_run, *pruner, f"model.path={model}"]
    sources = run(overrides).sources
    assert sources is not None
    assert set(sources["files"]) == {"model.path", "calibration.path", "task.path"}
    assert sources["parts"]["pruner"]["name"] == "stale_pruner.Own"
    first = sources["parts"]["pruner"]["hash"]
    caplog.clear()
    run(overrides)
    assert warnings_of(caplog) == []

    part.write_text(PRUNER + "# an edit\n")
    code._read.cache_clear()  # as in a new process
    run(overrides)
    (warning,) = warnings_of(caplog)
    assert f"made by other code (pruner stale_pruner.Own: {first} -> " in warning

    part.write_text(PRUNER)
    code._read.cache_clear()
    weights = model / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    run(overrides)
    assert warnings_of(caplog) == [f"files that it was made from have changed since (model.path={model})"]


def test_another_config_is_refused_and_can_replace(run: Run, text_run: list[str], tmp_path: Path) -> None:
    run(text_run)
    with pytest.raises(UserError, match=r"sparsity: 0\.6 -> 0\.5.*resume=false"):
        run([*text_run, "sparsity=0.5"])
    assert Result.read(tmp_path / "run" / "result.json").config["sparsity"] == 0.6
    run([*text_run, "sparsity=0.5", "resume=false"])
    assert Result.read(tmp_path / "run" / "result.json").config["sparsity"] == 0.5


def test_a_checkpoint_that_was_moved_to_another_disk_is_replaced_by_a_new_one(
    run: Run, text_run: list[str], tmp_path: Path
) -> None:
    """With a link in its place; the old one stays where it is."""
    run([*text_run, "model.save=true"])
    folder, disk = tmp_path / "run", tmp_path / "disk"
    before = weights(folder)
    disk.mkdir()
    (folder / "checkpoint").rename(disk / "checkpoint")
    (folder / "checkpoint").symlink_to(disk / "checkpoint")
    run([*text_run, "model.save=true", "sparsity=0.5", "resume=false"])
    assert verify(folder) == []
    assert weights(disk) == before != weights(folder)


def test_two_runs_never_share_a_folder(text_run: list[str], tmp_path: Path) -> None:
    config: Any = {"sparsity": 0.5}
    with (
        claimed(tmp_path, config, resume=True),
        pytest.raises(UserError, match=r"another run \(.*\) is active in .*hydra\.run\.dir"),
        claimed(tmp_path, config, resume=True, patience=0.1),
    ):
        pass


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_a_model_is_pruned_for_it(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match="is not UTF-8"), claimed(folder, {}, resume=True):
        pass
    assert not folder.exists()


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = abandoned(tmp_path)
    left.write_text("half")
    with claimed(tmp_path, {"sparsity": 0.5}, resume=True):
        assert not left.exists()


class Stop(BaseException):
    """Ends a run like a signal would."""


def stop_after(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, calls: int) -> None:
    """Let a function run so many times, then stop the run."""
    real, seen = getattr(target, name), [0]

    def counting(*arguments: Any, **keywords: Any) -> Any:
        seen[0] += 1
        if seen[0] > calls:
            raise Stop
        return real(*arguments, **keywords)

    monkeypatch.setattr(target, name, counting)


def calls_of(monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> list[int]:
    """Count how often a function runs."""
    real, seen = getattr(target, name), [0]

    def counting(*arguments: Any, **keywords: Any) -> Any:
        seen[0] += 1
        return real(*arguments, **keywords)

    monkeypatch.setattr(target, name, counting)
    return seen


def stopped(
    run: Run, monkeypatch: pytest.MonkeyPatch, overrides: list[str], target: Any, name: str, calls: int
) -> None:
    """A run that is stopped when a function has run so many times."""
    with monkeypatch.context() as patch:
        stop_after(patch, target, name, calls)
        with pytest.raises(Stop):
            run(overrides)


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_pruned_blocks_are_not_pruned_again(
    run: Run, text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pruner: str
) -> None:
    overrides = [*text_run, f"pruner={pruner}", "model.save=true"]
    run(overrides, "whole")
    stopped(run, monkeypatch, overrides, driver, "_prune_block", 1)
    assert status(tmp_path / "run")["state"] == "stopped"
    assert len(list((tmp_path / "run" / "blocks").iterdir())) == 1
    pruned = calls_of(monkeypatch, driver, "_prune_block")
    result = run(overrides)
    assert pruned == [1]
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert result.sparsity == Result.read(tmp_path / "whole" / "result.json").sparsity
    assert not (tmp_path / "run" / "blocks").exists()
    assert status(tmp_path / "run")["starts"] == 2


@pytest.mark.parametrize("again", ["the first", "the second"])
def test_a_run_that_ends_in_its_plan_leaves_the_folder_as_it_is(
    run: Run, text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """The stopped run can be resumed, and the other one never takes its products for its own."""
    first, second = [*text_run, "score=local", "allocation=water_filling"], [*text_run, "score=none"]
    stopped(run, monkeypatch, first, driver, "_prune_block", 1)
    stopped(run, monkeypatch, second, pipeline, "make_plan", 0)
    pruned = calls_of(monkeypatch, driver, "_prune_block")
    run(first if again == "the first" else second)
    assert pruned == [1 if again == "the first" else 2]
    assert (tmp_path / "run" / "scores.json").exists() == (again == "the first")
    assert status(tmp_path / "run")["starts"] == (2 if again == "the first" else 1)


LOSS = """
import torch

from ecoflap.models.core.losses import counting
from ecoflap.models.families.language.causal_lm import language_loss


def loss(module, batch, copies=1):
    counted = torch.ones_like(batch["input_ids"])
    counted[:, LAST:] = 0
    with counting(counted):
        return language_loss(module, batch, copies)
"""


def test_blocks_of_another_loss_are_pruned_again(
    run: Run, text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss says which tokens count, and so what a layer's inputs are."""
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [*text_run, "score=none", "model.loss=resumed_loss.loss", "model.save=true"]
    (tmp_path / "resumed_loss.py").write_text(LOSS.replace("LAST", "4"))
    stopped(run, monkeypatch, overrides, driver, "_prune_block", 1)
    assert len(list((tmp_path / "run" / "blocks").iterdir())) == 1
    (tmp_path / "resumed_loss.py").write_text(LOSS.replace("LAST", "12"))
    monkeypatch.delitem(sys.modules, "resumed_loss")
    code._read.cache_clear()  # as in a new process
    pruned = calls_of(monkeypatch, driver, "_prune_block")
    run(overrides)
    assert pruned == [2]


@pytest.mark.parametrize("damage", ["cut off", "edited", "of another run"])
def test_a_damaged_block_is_pruned_again(
    run: Run, text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    overrides = [*text_run, "model.save=true"]
    run(overrides, "whole")
    other = [*overrides, "seed=1"] if damage == "of another run" else overrides
    stopped(run, monkeypatch, other, driver, "_prune_block", 1)
    (file,) = (tmp_path / "run" / "blocks").iterdir()
    content = file.read_bytes()
    if damage == "cut off":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "edited":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run(overrides)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_an_evaluation_goes_on_from_its_predictions(
    run: Run, text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    overrides = [*text_run, "task.batch_size=1"]
    whole = run(overrides, "whole")
    lines = (tmp_path / "whole" / "predictions" / "token_perplexity_pruned.jsonl").read_text().splitlines()
    stopped(run, monkeypatch, overrides, pipeline, "conclude", 0)
    file = tmp_path / "run" / "predictions" / "token_perplexity_pruned.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:2]) + "\n")
    again = run(overrides)
    assert again.metrics == whole.metrics
    assert file.read_text().splitlines() == lines


def child(config: DictConfig, folder: Path) -> None:
    torch.set_num_threads(1)
    pipeline.run(config, folder)


def test_killed_at_any_moment_it_ends_the_same(text_run: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    """kill -9 at six moments of one run: a little after it starts, and after so many finished blocks."""
    deep = tmp_path / "deep"
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(tiny_llama)
    config.num_hidden_layers = 12
    LlamaForCausalLM(config).save_pretrained(deep)
    for file in tiny_llama.glob("tokenizer*"):
        (deep / file.name).write_bytes(file.read_bytes())
    overrides = [override for override in text_run if not override.startswith("cache=")]
    overrides += [f"model.path={deep}", "model.save=true", "pruner=sparsegpt", "task.batch_size=1"]
    context, moments = multiprocessing.get_context("fork"), random.Random(0)

    def start(name: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(
            target=child, args=(composed([*overrides, f"cache={tmp_path / name / 'cache'}"]), tmp_path / name)
        )
        process.start()
        return process

    began = time.monotonic()
    whole = start("whole")
    whole.join(timeout=120)
    took, expected, states = time.monotonic() - began, weights(tmp_path / "whole"), set()
    for number, blocks in enumerate((0, 0, 1, 4, 7, 11)):
        name = f"run{number}"
        first = start(name)
        while first.is_alive() and len(list((tmp_path / name / "blocks").glob("*.safetensors"))) < blocks:
            time.sleep(0.005)
        first.join(timeout=moments.uniform(0, 0.1) * took)
        assert first.pid is not None
        if first.is_alive():
            os.kill(first.pid, signal.SIGKILL)
        first.join(timeout=60)
        step = status(tmp_path / name)["step"] if (tmp_path / name / "status.json").is_file() else "before"
        states.add(f"{step} {len(list((tmp_path / name / 'blocks').glob('*.safetensors')))}")
        second = start(name)
        second.join(timeout=120)
        assert second.exitcode == 0
        assert weights(tmp_path / name) == expected
        assert status(tmp_path / name)["state"] == "done"
    assert len(states) > 2, f"the kills hit only {states}"


def test_resume_off_keeps_no_blocks(
    run: Run, text_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(run, monkeypatch, [*text_run, "resume=false"], driver, "_prune_block", 1)
    assert not (tmp_path / "run" / "blocks").exists()


def test_a_failure_is_named_in_the_status(run: Run, text_run: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run([*text_run, "towers=[vision]"])
    found = status(tmp_path / "run")
    assert found["state"] == "failed"
    assert "vision" in found["reason"]
