"""Many runs, one store: each stage is computed once, whoever dies meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoflap.storage.cache import store as module
from ecoflap.storage.cache.entries import AS_TENSORS, key_hash
from ecoflap.storage.cache.store import Store

KEY = {"model": "tiny"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.02)


def work(root: Path, barrier: Any, marks: Path) -> None:
    def compute() -> str:
        (marks / str(os.getpid())).touch()
        time.sleep(0.5)
        return "value"

    barrier.wait(timeout=60)
    value, _ = Store(root).get_or_compute("score", KEY, compute)
    assert value == "value"


def test_eight_cold_starts_compute_once(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    processes = [context.Process(target=work, args=(tmp_path / "store", barrier, marks)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert len(list(marks.iterdir())) == 1
    assert [path.name for path in (tmp_path / "store" / "score").iterdir()] == [key_hash(KEY)]


def die(root: Path, started: Any) -> None:
    def compute() -> str:
        started.set()
        time.sleep(60)
        return "never"

    Store(root).get_or_compute("score", KEY, compute)


def test_a_dead_owners_place_is_taken(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    owner = context.Process(target=die, args=(tmp_path, started))
    owner.start()
    assert started.wait(timeout=30)
    assert owner.pid is not None
    os.kill(owner.pid, signal.SIGKILL)
    owner.join(timeout=30)
    assert Store(tmp_path).get_or_compute("score", KEY, lambda: "mine") == ("mine", False)


def test_an_owner_that_fails_lets_the_next_one_try(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Store(tmp_path).get_or_compute("score", KEY, fail)
    assert Store(tmp_path).get_or_compute("score", KEY, lambda: 1) == (1, False)


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    value = {
        "0/ids": torch.arange(3),
        "0/pixels": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).half().t(),
    }
    missed, _ = Store(tmp_path).get_or_compute("calibration", KEY, lambda: value, AS_TENSORS)
    found, hit = Store(tmp_path).get_or_compute("calibration", KEY, dict, AS_TENSORS)
    assert hit
    for got in (missed, found):
        assert set(got) == set(value)
        assert all(
            got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)
            for name, tensor in value.items()
        )
