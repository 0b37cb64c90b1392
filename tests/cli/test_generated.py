"""Runs that calibrate on rows which the dense model generates."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ecoflap.storage.results import Result

PLAIN = ["score=none", "allocation=water_filling", "pruner=sparsegpt"]
GENERATED = [*PLAIN, "calibration.samples=8", "calibration.generated=4"]


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
def test_the_same_in_memory_offloaded_and_from_the_cache(
    run: Callable[..., Result], text_run: list[str], offload: str
) -> None:
    text_run = [override for override in text_run if not override.startswith("score.")]
    in_memory = run([*text_run, *GENERATED, "cache_mode=off"], "in_memory")
    for name in ("first", "cached"):
        result = run([*text_run, *GENERATED, f"runtime.offload={offload}"], name)
        assert result.steps["calibrate"]["cached"] == (name == "cached")
        assert result.data["calibration"] == in_memory.data["calibration"]
        assert result.metrics == in_memory.metrics
    file_alone = run([*text_run, *PLAIN, "calibration.samples=4"], "file_alone")
    assert file_alone.metrics["dense"] == in_memory.metrics["dense"]
    assert file_alone.metrics["pruned"] != in_memory.metrics["pruned"]
