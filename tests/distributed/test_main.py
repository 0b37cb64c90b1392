"""``main.py`` in several processes: results of one process, one set of files, errors, stops and resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecoflap.storage.file_names import LEASE
from ecoflap.storage.lease import held
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results.verification import verify
from tests.cli import forked

from .together import environments

pytestmark = pytest.mark.long


def started(count: int, overrides: Sequence[str], folder: Path) -> list[forked.Started]:
    arguments = [*overrides, "tracking=none", "device=cpu", f"hydra.run.dir={folder}"]
    if count == 1:
        return [forked.start(arguments, forked.ROOT)]
    return [forked.start(arguments, forked.ROOT, variables) for variables in environments(count)]


def main(count: int, overrides: Sequence[str], folder: Path) -> list[subprocess.CompletedProcess[str]]:
    return [one.finished() for one in started(count, overrides, folder)]


def succeed(count: int, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """The result of a run that ends well."""
    ended = main(count, overrides, folder)
    assert [one.returncode for one in ended] == [0] * count, "\n".join(one.stderr for one in ended)
    assert not any(one.stdout for one in ended[1:]), "the first process alone prints"
    assert not (folder / "processes").exists()
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def assert_same_model(one: Path, other: Path) -> None:
    """The same masks; weights up to rounding."""
    masks, others = (load_masks(folder / "checkpoint" / "masks.bits") for folder in (one, other))
    assert masks.keys() == others.keys()
    different = sum(int((masks[name] != others[name]).sum()) for name in masks)
    assert different <= 1e-3 * sum(mask.numel() for mask in masks.values()), f"{different} weights differ"
    if not different:
        for name, tensor in weights_of(one).items():
            torch.testing.assert_close(tensor, weights_of(other)[name], rtol=1e-3, atol=1e-3, msg=name)


MODELS = {
    "blip2_mini": ["model=blip2_mini", "task.limit=20"],
    "clip_mini": ["model=clip_mini", "task.limit=20"],
}
METHODS = {
    "wanda, zeroth order": ["pruner=wanda", "score=zeroth_order", "score.samples=4", "score.batch_size=2"],
    "sparsegpt, first order": ["pruner=sparsegpt", "score=first_order", "score.samples=16"],
    "admm, layer by layer": ["pruner=admm", "score=none", "propagate=layer", "batch_size=16"],
    "in context": [
        "pruner=wanda",
        "score=none",
        "allocation=in_context",
        "allocation.steps=2",
        "allocation.ramp_steps=1",
    ],
}


@pytest.mark.parametrize(
    ("model", "method"),
    [*(("blip2_mini", name) for name in METHODS), ("clip_mini", "sparsegpt, first order")],
)
@pytest.mark.every_run("blip2_mini-in context", "clip_mini-*")
def test_the_result_is_that_of_one_process(model: str, method: str, tmp_path: Path) -> None:
    overrides = [*MODELS[model], *METHODS[method], "calibration.samples=16", "model.save=true"]
    alone = succeed(1, [*overrides, f"cache={tmp_path / 'one'}"], tmp_path / "alone")
    found = succeed(2, [*overrides, f"cache={tmp_path / 'two'}"], tmp_path / "together")
    assert found["metrics"] == alone["metrics"]
    assert found["sparsity"].keys() == alone["sparsity"].keys()
    assert found["scores"] == alone["scores"]
    assert [one["hardware"]["processes"] for one in (alone, found)] == [1, 2]
    assert verify(tmp_path / "together") == []
    assert_same_model(tmp_path / "together", tmp_path / "alone")


@pytest.mark.parametrize("pruner", ["global_gradient", "global_magnitude"])
@pytest.mark.every_run("global_gradient")
def test_pruners_of_the_whole_model(pruner: str, text_run: list[str], tmp_path: Path) -> None:
    overrides = [*text_run, "score=none", f"pruner={pruner}", "model.save=true"]
    succeed(1, overrides, tmp_path / "alone")
    succeed(2, overrides, tmp_path / "together")
    assert_same_model(tmp_path / "together", tmp_path / "alone")


def test_a_second_run_reads_what_the_first_has_stored(text_run: list[str], tmp_path: Path) -> None:
    scored = [*text_run, "score=first_order", "allocation=water_filling"]
    succeed(2, scored, tmp_path / "one")
    again = succeed(3, scored, tmp_path / "two")
    assert again["steps"]["score"]["cached"]
    assert again["steps"]["evaluate_dense"]["cached"]


def test_a_run_that_finishes_while_the_first_process_waits(text_run: list[str], tmp_path: Path) -> None:
    """The second process has seen no result by then."""
    overrides, folder = [*text_run, "score=none"], tmp_path / "run"
    succeed(1, overrides, folder)
    result, aside = folder / "result.json", tmp_path / "result.json"
    result.rename(aside)
    with held(folder / LEASE, lambda owner: owner):
        children = started(2, overrides, folder)
        deadline = time.monotonic() + 60
        while not (second := folder / "processes" / "1" / "status.json").exists():
            assert time.monotonic() < deadline, f"no {second}"
            time.sleep(0.01)
        aside.rename(result)
    ended = [one.finished() for one in children]
    assert [one.returncode for one in ended] == [0, 0], "\n".join(one.stderr for one in ended)
    assert "finished already" in ended[0].stderr


def test_more_processes_than_samples_are_refused(text_run: list[str], tmp_path: Path) -> None:
    ended = main(7, [*text_run, "score=none"], tmp_path / "run")
    assert all(one.returncode for one in ended)
    assert "error: 7 processes share 6 calibration samples" in ended[0].stderr
    assert "Traceback" not in "".join(one.stderr for one in ended)


def test_a_port_that_is_taken_is_named(text_run: list[str], tmp_path: Path) -> None:
    first, _ = environments(2)
    with socket.socket() as other:
        other.bind(("", int(first["MASTER_PORT"])))
        other.listen()
        ended = forked.start([*text_run, f"hydra.run.dir={tmp_path / 'run'}"], forked.ROOT, first).finished()
    assert ended.returncode == 2
    assert f"can't meet at 127.0.0.1:{first['MASTER_PORT']}" in ended.stderr
    assert "choose another port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_error_of_one_process_is_that_of_the_run(text_run: list[str], tmp_path: Path) -> None:
    """A disk that one node lacks."""
    folder = tmp_path / "run"
    arguments = [*text_run, "score=none", "tracking=none", f"hydra.run.dir={folder}"]
    first, second = environments(2)
    there = forked.start(arguments, forked.ROOT, first)
    missing = forked.start([*arguments, "model.path=/nowhere"], forked.ROOT, second)
    said = [one.finished() for one in (there, missing)]
    assert all(one.returncode for one in said)
    assert "/nowhere" in said[1].stderr
    assert "process 2 of 2 has failed" in said[0].stderr
    assert "/nowhere" in said[0].stderr
    assert "Traceback" not in said[0].stderr
    assert not (folder / "result.json").exists()


def test_processes_that_load_different_weights_are_refused(
    text_run: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    """A node with an old copy of the checkpoint."""
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    next(iter(tensors.values())).add_(1)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    arguments = [*text_run, "score=none", "tracking=none", f"hydra.run.dir={tmp_path / 'run'}"]
    children = [
        forked.start([*arguments, f"model.path={path}"], forked.ROOT, variables)
        for path, variables in zip((tiny_llama, copy), environments(2), strict=True)
    ]
    for ended in [one.finished() for one in children]:
        assert ended.returncode == 2
        assert "different models (weights or settings)" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.every_run("3")
def test_a_killed_run_goes_on_in_another_number_of_processes(
    text_run: list[str], tmp_path: Path, count: int
) -> None:
    """kill -9 of one process ends both; blocks that they have pruned are not pruned again."""
    overrides = [*text_run, "score=none", "pruner=sparsegpt", "model.save=true"]
    folder = tmp_path / "run"
    children = started(2, [*overrides, "batch_size=1"], folder)
    deadline = time.monotonic() + 60
    while not list((folder / "blocks").glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(children[1].pid, signal.SIGKILL)
    ended = [one.finished() for one in children]
    if (folder / "result.json").exists():
        pytest.skip("it had finished before it could be killed")
    assert ended[1].returncode == -signal.SIGKILL
    assert ended[0].returncode
    assert "another process of the run has ended" in ended[0].stderr
    succeed(count, [*overrides, "batch_size=1"], folder)
    succeed(1, [*overrides, "batch_size=1"], tmp_path / "whole")
    assert_same_model(folder, tmp_path / "whole")
