"""``finetune.shard=true`` in two processes: the result of one process, checkpoints, and runs that go on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer import TRAINER_STATE_NAME

from ecoflap.storage.results.verification import verify
from tests.cli.test_finetune import QUICK, close, curve, weights
from tests.finetune.test_sharding import SHARDS

from .test_main import main, started, succeed

pytestmark = [pytest.mark.long, SHARDS]


def sharded(overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    return succeed(2, [*overrides, "finetune.shard=true"], folder)


def assert_same_curve(one: Path, other: Path) -> None:
    for ours, theirs in zip(curve(one), curve(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.every_run("full")
def test_two_processes_are_one_with_twice_the_batch(text_run: list[str], tmp_path: Path, method: str) -> None:
    steps = ["finetune.steps=4", "finetune.held_out=2", "finetune.every=2"]
    overrides = [*text_run, *QUICK, f"finetune={method}", *steps]
    one = succeed(1, [*overrides, "finetune.batch_size=2"], tmp_path / "one")
    two = sharded([*overrides, "finetune.batch_size=1"], tmp_path / "two")
    close(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    assert verify(tmp_path / "two") == []
    for metric, value in one["metrics"]["finetuned"]["token_perplexity"].items():
        assert two["metrics"]["finetuned"]["token_perplexity"][metric] == pytest.approx(value, rel=1e-4)
    last = tmp_path / "two" / "finetune" / "checkpoint-4"
    saved = load_file(last / "trained.safetensors")
    assert (
        sum(value.numel() for value in saved.values())
        == json.loads((tmp_path / "two" / "finetune.json").read_text())["trained"]
    )
    assert len(list((last / "optimizer").glob("*.distcp"))) == 2, "each process saves its optimizer states"


@pytest.mark.variant
def test_shards_take_every_option_of_the_schedule(text_run: list[str], tmp_path: Path) -> None:
    options = [
        "finetune.precision=bfloat16",
        "finetune.recompute=true",
        "finetune.accumulation=2",
        "finetune.batch_size=1",
        "finetune.steps=4",
    ]
    succeed(2, [*text_run, *QUICK, *options], tmp_path / "copies")
    sharded([*text_run, *QUICK, *options], tmp_path / "shards")
    close(weights(tmp_path / "copies"), weights(tmp_path / "shards"))
    assert_same_curve(tmp_path / "copies", tmp_path / "shards")


@pytest.mark.variant
def test_a_killed_run_goes_on_from_its_checkpoint(text_run: list[str], tmp_path: Path) -> None:
    """kill -9 of one process as soon as there is a checkpoint."""
    overrides = [*text_run, *QUICK, "finetune.steps=60", "finetune.every=10", "finetune.held_out=2"]
    folder, shards = tmp_path / "run", "finetune.shard=true"
    children, deadline = started(2, [*overrides, shards], folder), time.monotonic() + 60
    while not (folder / "finetune" / "checkpoint-10" / TRAINER_STATE_NAME).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(children[1].pid, signal.SIGKILL)
    ended = [one.finished() for one in children]
    assert ended[1].returncode == -signal.SIGKILL
    assert not (folder / "result.json").exists(), "it was killed before its training ended"
    assert "another process of the run has ended" in ended[0].stderr
    again = main(2, [*overrides, shards], folder)
    assert [one.returncode for one in again] == [0, 0], "\n".join(one.stderr for one in again)
    assert "resumes from" in again[0].stderr
    sharded(overrides, tmp_path / "whole")
    assert curve(folder) == curve(tmp_path / "whole")
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(folder).items())


@pytest.mark.variant
def test_a_model_of_two_towers_is_sharded(tmp_path: Path) -> None:
    overrides = [
        "model=clip_mini",
        "task.limit=20",
        "score=none",
        "calibration.samples=16",
        "finetune.data=calibration",
        "finetune.steps=3",
        *(one for one in QUICK if one != "score=none"),
    ]
    succeed(2, [*overrides, f"cache={tmp_path / 'cache'}"], tmp_path / "copies")
    sharded([*overrides, f"cache={tmp_path / 'cache'}"], tmp_path / "shards")
    one, other = weights(tmp_path / "copies"), weights(tmp_path / "shards")
    for name in [name for name in one if name.endswith("k_proj.bias")]:
        # It adds the same to all logits of a query: its gradient is rounding noise, which Adam scales up.
        torch.testing.assert_close(one.pop(name), other.pop(name), rtol=0, atol=1e-4)
    close(one, other)
    assert verify(tmp_path / "shards") == []


def test_half_precision_is_refused(text_run: list[str], tmp_path: Path) -> None:
    ended = main(
        1, [*text_run, *QUICK, "finetune.shard=true", "finetune.precision=float16"], tmp_path / "run"
    )
    assert ended[0].returncode
    assert "finetune.shard=true" in ended[0].stderr
    assert "bfloat16" in ended[0].stderr
