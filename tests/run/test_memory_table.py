"""What is said of a step that needs more memory than there is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import Planned
from ecoflap.run.plan import make_plan
from ecoflap.run.state import RunState
from ecoflap.run.steps import memory_table, prepare
from ecoflap.run.steps.memory_table import show_needs, what_helps
from ecoflap.run.steps.workload import Need
from tests import tiny
from tests.cli.conftest import composed


@pytest.fixture
def model() -> PrunableModel:
    return tiny.build("llama")


def test_a_plan_that_does_not_fit_says_what_helps(
    model: PrunableModel, caplog: pytest.LogCaptureFixture
) -> None:
    show_needs(model, [Need("score", 1, 2, 3), Need("prune", 1, 2**60, 3)])
    assert "prune may need" in caplog.text
    assert "use runtime.offload=disk, or fewer samples" in caplog.text, "on the CPU, cpu would change nothing"
    assert "score may need" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "device", "message"),
    [
        ("cpu", "cuda", "hidden states on the CPU, where .* use runtime.offload=disk, or fewer samples"),
        ("disk", "cpu", "hidden states on the disk, where .* use hydra.run.dir=/a/folder, or fewer samples"),
    ],
)
def test_hidden_states_that_fit_nowhere(
    model: PrunableModel,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    device: str,
    message: str,
) -> None:
    monkeypatch.setattr(memory_table, "free_memory", lambda _: 2**60)
    placement = Planned(kind, torch.device(device))
    placement.folder = tmp_path / "not" / "there"
    offloaded = replace(model, placement=placement)
    show_needs(offloaded, [Need("score", 1, 2, 3, offloaded=4), Need("prune", 1, 2, 3, offloaded=2**60)])
    assert re.search(f"prune stores .* {message}", caplog.text)
    assert "score stores" not in caplog.text


def test_processes_share_the_samples_of_a_run(
    model: PrunableModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[Need] = []
    monkeypatch.setattr(prepare, "show_needs", lambda _, needs: found.extend(needs))
    plan = make_plan(composed(["+preset=debug"]), tmp_path)
    state = RunState("", calibration=tiny.samples("llama", (7,) * 8))
    for count in (1, 4):
        monkeypatch.setattr(prepare, "size", lambda count=count: count)
        prepare.show_memory(plan, model, state)
    one, four = (need for need in found if need.step == "prune")
    assert one.states == 4 * four.states > 0


def test_processes_share_the_disk(
    model: PrunableModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    placement = Planned("disk", torch.device("cpu"))
    placement.folder = tmp_path
    for name, found in (("free_memory", 2**60), ("free_disk", 100), ("size", 2)):
        monkeypatch.setattr(memory_table, name, lambda *_, found=found: found)
    show_needs(replace(model, placement=placement), [Need("prune", 1, 2, 3, offloaded=60)])
    assert "prune stores" in caplog.text


@pytest.mark.parametrize(
    ("need", "kind", "option"),
    [
        (Need("score", 1, 2, 3, batch_size="score.batch_size"), "none", "score.batch_size"),
        (Need("prune", 1, 2, 3), "none", "a smaller batch_size"),
        (Need("score", 1, 3, 2), "none", "score.batch_size"),
        (Need("prune", 3, 2, 1), "none", "runtime.offload=cpu"),
        (Need("prune", 3, 2, 1), "cpu", "runtime.offload=disk"),
        (Need("prune", 3, 2, 1), "disk", "model.dtype=bfloat16"),
    ],
)
def test_the_largest_part_decides(need: Need, kind: str, option: str) -> None:
    assert option in what_helps(need, kind)


def test_no_option_is_advised_that_is_in_use_or_refused() -> None:
    weights, states = Need("prune", 3, 2, 1), Need("prune", 1, 3, 2)
    assert what_helps(weights, "none", half=True) == "use runtime.offload=cpu"
    assert what_helps(replace(weights, together=True), "none") == "use model.dtype=bfloat16"
    assert what_helps(replace(weights, wide=True, together=True), "none") == "use a device with more memory"
    assert what_helps(states, "none") == "use runtime.offload=cpu, or fewer samples"
    assert what_helps(replace(states, together=True), "none") == "use fewer samples"
    assert what_helps(replace(states, of_batch=True), "cpu") == "use a smaller batch_size"
