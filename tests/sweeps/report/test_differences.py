"""Differences and their intervals, from records and scores with known figures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ecoflap.cli.report import main
from ecoflap.sweeps.report.differences import Row, rows_of
from ecoflap.sweeps.report.metrics import make_tables
from ecoflap.sweeps.report.runs import read_runs
from ecoflap.sweeps.report.sections import make_sections
from tests.sweeps.report.conftest import write_run

pytestmark = pytest.mark.long

UNIFORM = {"score": {"name": "none"}}
RANDOM = np.random.default_rng(1)
DENSE = [1.0] * 400


def scored(
    folder: Path, name: str, pruned: Sequence[float], dense: Sequence[float] | None = DENSE, **changes
) -> None:  # type: ignore[no-untyped-def]
    """A run whose accuracies follow from the scores of its items."""
    path = write_run(
        folder,
        name,
        100 * float(np.mean(pruned)),
        None if dense is None else 100 * float(np.mean(dense)),
        **changes,
    )
    (path.parent / "predictions").mkdir()
    scores = {"metric": "accuracy", "exponential": False, "dense": dense, "pruned": list(pruned)}
    content = {**scores, "examples": [], "passage": []}
    (path.parent / "predictions" / "vqa_pruned_items.json").write_text(json.dumps(content))


def rows(folder: Path) -> list[Row]:
    (table,) = make_tables(make_sections(read_runs(folder)))
    return rows_of(table)


def test_one_run_has_the_interval_of_its_items(tmp_path: Path) -> None:
    scored(tmp_path, "a", (RANDOM.random(400) < 0.8).astype(float))
    (row,) = rows(tmp_path)
    assert (row.seeds, row.items, row.uniform) == (1, 400, None)
    assert row.dense is not None
    assert row.dense.low is not None
    assert row.dense.high is not None
    share = -row.dense.mean / 100
    half = 196 * math.sqrt(share * (1 - share) / 400)  # of a share of 400 items, in points
    assert row.dense.low == pytest.approx(row.dense.mean - half, abs=0.5)
    assert row.dense.high == pytest.approx(row.dense.mean + half, abs=0.5)


def test_pairs_of_the_same_items_leave_no_doubt(tmp_path: Path) -> None:
    """Two runs that agree on all items but few differ for sure, whatever the spread of the items."""
    base = (RANDOM.random(400) < 0.5).astype(float)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:20]] = 1
    for seed in (0, 1):
        scored(tmp_path, f"u{seed}", base, seed=seed, **UNIFORM)
        scored(tmp_path, f"z{seed}", better, seed=seed)
    uniform, other = sorted(rows(tmp_path), key=lambda row: row.uniform is not None)
    assert uniform.uniform is None
    assert other.uniform is not None
    assert other.uniform.low is not None
    assert other.uniform.mean == pytest.approx(5)
    assert 2 < other.uniform.low < 5
    assert (other.seeds, other.items) == (2, 400)


def test_seeds_that_differ_widen_the_interval(tmp_path: Path) -> None:
    for seed, share in enumerate((0.5, 0.9)):
        scored(
            tmp_path, str(seed), [1.0] * int(400 * share) + [0.0] * int(400 * (1 - share) + 0.5), seed=seed
        )
    (row,) = rows(tmp_path)
    assert row.dense is not None
    assert row.dense.low is not None
    assert row.dense.high is not None
    assert row.dense.low < -48
    assert row.dense.high > -13


def test_without_items_seeds_alone_decide_and_one_seed_has_no_interval(tmp_path: Path) -> None:
    for seed, figure in enumerate((70.0, 71.0, 72.0)):
        write_run(tmp_path, str(seed), figure, seed=seed)
    write_run(tmp_path, "alone", 60.0, sparsity=0.6)
    three, one = rows(tmp_path)
    assert three.dense is not None
    assert three.dense.low == pytest.approx(-9 - 4.303 / math.sqrt(3), abs=1e-3)
    assert (three.items, one.items) == (0, 0)
    assert one.dense == (-20.0, None, None)


def test_runs_with_other_items_fall_back_to_seeds(tmp_path: Path) -> None:
    scored(tmp_path, "a", [1.0, 0.0] * 200, seed=0)
    scored(tmp_path, "b", [1.0, 0.0] * 20, dense=[1.0] * 40, seed=1)
    (row,) = rows(tmp_path)
    assert row.items == 0
    assert row.dense is not None
    assert row.dense.mean == pytest.approx(-50)


def test_what_is_not_finite_has_no_interval_and_no_mark(tmp_path: Path) -> None:
    write_run(tmp_path, "a", math.inf)
    (table,) = make_tables(make_sections(read_runs(tmp_path)))
    (row,) = rows_of(table)
    assert row.dense is not None
    assert row.dense.low is None
    assert main([str(tmp_path)]) == 0
    assert "differences" not in (tmp_path / "report" / "index.html").read_text()


def test_the_page_shows_them_with_what_was_resampled(tmp_path: Path) -> None:
    scored(tmp_path, "u", [1.0] * 200 + [0.0] * 200, **UNIFORM)
    scored(tmp_path, "z", [1.0] * 300 + [0.0] * 100)
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report" / "index.html").read_text()
    assert "bootstrap over 400 items, paired" in html  # of one seed each
    assert "+25 [" in html
    assert "−50 [" in html
    assert "± standard" not in html
