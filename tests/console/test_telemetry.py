"""Seconds and peak memory of a step."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ecoflap.console import telemetry
from ecoflap.console.progress import watching
from ecoflap.console.telemetry import measure

pytestmark = pytest.mark.long

MEGABYTE = 2**20
HOST_PEAK_CAN_BE_RESET = Path("/proc/self/clear_refs").exists() and not torch.accelerator.is_available()


def test_seconds_and_bytes_are_written() -> None:
    steps: dict[str, dict[str, Any]] = {}
    began = time.perf_counter()
    with measure(steps, "score"):
        time.sleep(0.02)
    assert 0.02 <= steps["score"]["seconds"] <= time.perf_counter() - began
    assert isinstance(steps["score"]["peak_memory_bytes"], int)
    assert steps["score"]["peak_memory_bytes"] > MEGABYTE


def test_a_step_without_a_loop_is_the_step_that_a_run_is_at() -> None:
    seen: list[tuple[str, int, int | None]] = []
    with watching(lambda *progress: seen.append(progress)), measure({}, "load"):
        assert seen == [("load", 0, None)]


def test_a_failing_step_is_measured_and_its_error_passes() -> None:
    steps: dict[str, dict[str, Any]] = {}
    with pytest.raises(KeyError), measure(steps, "score"):
        raise KeyError("x")
    assert set(steps["score"]) == {"seconds", "peak_memory_bytes", "cached"}


@pytest.mark.skipif(not HOST_PEAK_CAN_BE_RESET, reason="needs Linux and no accelerator")
def test_each_step_has_its_own_peak() -> None:
    # In a process of its own: this one may hold freed memory of earlier tests, which a new allocation would
    # take without a new peak.
    code = """
from ecoflap.console.telemetry import measure
steps = {}
with measure(steps, "large"):
    large = bytearray(b"x") * (200 * 2**20)
    del large
with measure(steps, "small"):
    pass
print(steps["large"]["peak_memory_bytes"] - steps["small"]["peak_memory_bytes"])
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(finished.stdout) > 150 * MEGABYTE


def test_without_proc_the_figure_of_the_whole_process_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(telemetry, "_PROC", tmp_path / "missing")
    monkeypatch.setattr(telemetry, "_accelerator", lambda: None)
    steps: dict[str, dict[str, Any]] = {}
    with measure(steps, "score"):
        pass
    assert MEGABYTE < steps["score"]["peak_memory_bytes"] < 2**43


class FakeAllocator:
    """Stands in for ``torch.cuda``."""

    peak = 7

    def reset_peak_memory_stats(self) -> None:
        self.peak = 0

    def max_memory_allocated(self) -> int:
        return self.peak


def test_accelerator_peak_is_preferred_when_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = FakeAllocator()
    monkeypatch.setattr(telemetry, "_accelerator", lambda: allocator)
    steps: dict[str, dict[str, Any]] = {}
    with measure(steps, "used"):
        allocator.peak = 123
    with measure(steps, "unused"):
        pass
    assert steps["used"]["peak_memory_bytes"] == 123
    assert steps["unused"]["peak_memory_bytes"] > MEGABYTE


def test_what_the_allocator_keeps_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's next model goes where the last one's peak was."""
    allocator = SimpleNamespace(
        mem_get_info=lambda _: (10, 100), memory_reserved=lambda _: 60, memory_allocated=lambda _: 20
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: allocator)
    assert telemetry.free_memory(torch.device("cuda")) == 50
    assert telemetry.free_memory(torch.device("cpu")) > 100
