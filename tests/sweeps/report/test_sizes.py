"""Sizes on disk, from records with known counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ecoflap.cli.report import main
from ecoflap.sweeps.report.runs import read_runs
from ecoflap.sweeps.report.sections import make_sections
from ecoflap.sweeps.report.sizes import Size, sizes_of
from tests.sweeps.report.conftest import write_run

pytestmark = pytest.mark.long


def sizes(folder: Path) -> list[Size]:
    (section,) = make_sections(read_runs(folder))
    return sizes_of(section)


def recorded_as(dtype: str) -> dict[str, Any]:
    """The part of a record that has the dtype."""
    return {
        "model": {"name": "tiny", "fingerprint": "f", "parameters": 2000, "prunable": 1000, "dtype": dtype}
    }


def test_a_bitmask_keeps_a_bit_per_prunable_weight_and_what_is_not_zero(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0, model__dtype="float32", blocks={"text": [0.5, 0.7]})
    (size,) = sizes(tmp_path)
    assert size.dense == pytest.approx(2000 * 4 / 1e6)  # 400 prunable weights in 4 layers
    assert size.bitmask == pytest.approx((2000 * 4 - 240 * 4 + 4 * 13) / 1e6)  # 13 bytes have 100 bits
    assert not size.measured
    assert size.saved is None


def test_layers_with_few_zeros_or_a_pattern_take_as_much_as_in_a_file(tmp_path: Path) -> None:
    """By the rules of the format: dense where a mask does not pay, and fewer bits for N of 4 weights."""
    write_run(tmp_path, "few", 70.0, blocks={"text": [0.01]}, sparsity=0.01)
    write_run(
        tmp_path, "pairs", 70.0, blocks={"text": [0.5]}, pruner__mask="2:4", record=recorded_as("bfloat16")
    )
    few, pairs = sizes(tmp_path)
    assert few.bitmask == few.dense
    assert pairs.bitmask == pytest.approx((2000 * 2 - 2 * 50 * 2 + 2 * 9) / 1e6)  # three groups in a byte


def test_a_saved_bitmask_is_measured(tmp_path: Path) -> None:
    """Its headers and its index count as well."""
    write_run(tmp_path, "0", 70.0, seed=0)
    path = write_run(tmp_path, "1", 70.0, seed=1, record={"checkpoint": "checkpoint"}, model__save="bitmask")
    weights = {"bitmask.index.json": 100, "bitmask-00001-of-00001.safetensors": 4000}
    (path.parent / "checkpoint").mkdir()
    for name, size in {**weights, "config.json": 30}.items():
        (path.parent / "checkpoint" / name).write_bytes(bytes(size))
    (found,) = sizes(tmp_path)
    assert (found.bitmask, found.measured, found.saved) == (0.0041, True, 0.00413)


def test_methods_whose_models_take_as_much_share_a_row(tmp_path: Path) -> None:
    for name, pruner, sparsity in (("a", "wanda", 0.5), ("b", "sparsegpt", 0.5), ("c", "wanda", 0.7)):
        write_run(tmp_path, name, 70.0, pruner__name=pruner, sparsity=sparsity, blocks={"text": [sparsity]})
    labels = ("sparsegpt, zeroth order", "wanda, zeroth order")
    assert [(size.methods, size.sparsity) for size in sizes(tmp_path)] == [(labels, 0.5), (labels[1:], 0.7)]


@pytest.mark.parametrize(
    ("recorded", "asked", "width"),
    [("float32", "auto", 4), ("bfloat16", "auto", 2), ("bfloat16", "float32", 2)],
)
def test_bytes_of_a_weight(tmp_path: Path, recorded: str, asked: str, width: int) -> None:
    """By the dtype that the weights had."""
    write_run(tmp_path, "a", 70.0, record=recorded_as(recorded), model__dtype=asked)
    assert sizes(tmp_path)[0].dense == pytest.approx(2000 * width / 1e6)


def test_a_dtype_of_unknown_size_is_not_shown(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0, record=recorded_as("int8"))
    assert sizes(tmp_path) == []


def test_a_saved_checkpoint_is_measured(tmp_path: Path) -> None:
    path = write_run(tmp_path, "a", 70.0, record={**recorded_as("float32"), "checkpoint": "checkpoint"})
    assert sizes(tmp_path)[0].saved is None  # moved away
    (path.parent / "checkpoint").mkdir()
    (path.parent / "checkpoint" / "model.safetensors").write_bytes(bytes(1500))
    assert sizes(tmp_path)[0].saved == pytest.approx(0.0015)
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "measured where a run saved its model" in page
    assert "(≥: without headers and index" in page
