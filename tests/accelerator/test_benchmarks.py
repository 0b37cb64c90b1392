"""Rows of the benchmarks on the pretend accelerator: both sides of each compute there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import coarse, fine, growth, kernels, offload, structured
from benchmarks.measure import Row
from benchmarks.models import device, llama, tokens
from ecoflap.score.first_order import FirstOrder
from tests import tiny
from tests.accelerator.conftest import in_child


def solves() -> list[Row]:
    assert device().type == "npy"
    rows = [kernels.solve(256, runs=1), kernels.admm(64, 96, runs=1)]
    return [*rows, kernels.selection(64, runs=1), kernels.n_of_m(64, 2, 4, runs=1)]


def scores() -> list[Row]:
    coarse.smollm2 = partial(llama, 32, 3)
    calibration = tokens(4, 6, 256)
    first = coarse.beside_zeroth_order("tiny", FirstOrder(samples=4), calibration, 1.0)
    return [first, *coarse.zeroth_order("tiny", llama(32, 3), calibration, [0, 2])]


def passes() -> list[Row]:
    model, batch = tiny.build("blip_vqa"), tiny.samples("blip_vqa", (5, 5)).batches(2)[0]
    model.module.to(device())
    return list(structured.forward("tiny", model, batch, runs=1))


def saved(folder: str) -> list[int]:
    processor = SimpleNamespace(save_pretrained=lambda folder: None)
    offload.SAMPLES = offload.LENGTH = offload.BATCH = 4
    offload.smollm2 = lambda: replace(llama(32, 3, 49152), processor=processor)
    return [*offload.prepare(folder).values()]


def whole_runs() -> list[Row]:
    rows: list[Row] = []
    for name, case in fine.CASES.items():
        rows += fine.whole_run(name, llama(32, 2), tokens(3, 20, 256), case, batch_size=2, runs=1)
    return rows


def grown() -> list[Row]:
    base = {"width": 16, "depth": 1, "tokens": 4, "samples": 1}
    return [growth.growth(method, "samples", (1, 2), base) for method in growth.LAWS]


@pytest.mark.parametrize("work", [solves, scores, whole_runs, grown, passes])
@pytest.mark.every_run("solves", "scores", "passes")
def test_both_sides_of_a_row_compute_on_the_device(work: Callable[[], list[Row]]) -> None:
    assert in_child(work)


def test_the_sizes_of_disk_offload_are_measured_on_the_device(tmp_path: Path) -> None:
    assert all(size > 0 for size in in_child(saved, str(tmp_path)))
