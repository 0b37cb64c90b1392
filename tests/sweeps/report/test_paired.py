"""Differences to the uniform allocation, from records with known figures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ecoflap.storage.file_names import RESULT
from ecoflap.storage.results import Result, sparsity_section
from ecoflap.sweeps.report.differences import Difference, rows_of
from ecoflap.sweeps.report.intervals import interval, student
from ecoflap.sweeps.report.metrics import make_tables
from ecoflap.sweeps.report.paired import main
from ecoflap.sweeps.report.runs import read_runs
from ecoflap.sweeps.report.sections import make_sections


def write(
    folder: Path,
    figures: list[float],
    coarse: str = "none",
    pruner: str = "wanda",
    sparsity: float = 0.5,
    metric: str = "accuracy",
    seconds: float = 1.0,
    cached: bool = False,
    recalled: int = 0,
    samples: int = 128,
    propagate: str = "pruned",
    path: str | None = None,
    tuned: float | None = None,
    rate: float = 1e-5,
    model: str = "m",
    mask: str = "row",
    other: float | None = None,
) -> None:
    """One run per seed; each draws other calibration samples, and from each path.

    Args:
        other: what the same metric of a second task is above each figure; None if there is one task.
        tuned: what fine-tuning adds to each figure; None if there was none.
        rate: the learning rate of fine-tuning, in the config even where there was none.
    """
    for seed, figure in enumerate(figures):
        settings = (model, coarse, pruner, mask, sparsity, samples, propagate, path, tuned, rate, seed)
        place = folder / "_".join(map(str, settings))
        place.mkdir(parents=True)
        metrics = {"pruned": {"vqa": {metric: figure}}}
        if other is not None:
            metrics["pruned"]["gqa"] = {metric: figure + other}
        if tuned is not None:
            metrics["finetuned"] = {"vqa": {metric: figure + tuned}}
        Result(
            config={
                "model": {"name": model},
                "pruner": {"name": pruner, "mask": mask},
                "score": {"name": "none"},
                "allocation": {"name": coarse},
                "calibration": {"name": "vqa", "samples": samples, "path": path},
                "finetune": {"name": "full", "learning_rate": rate},
                "propagate": propagate,
                "sparsity": sparsity,
                "seed": seed,
            },
            versions={},
            git=None,
            model={},
            data={} if path is None else {"calibration": {"fingerprint": f"{path} {seed}"}},
            metrics=metrics,
            sparsity=sparsity_section({}, sparsity, 10, coarse=coarse),
            steps={
                "allocate": {
                    "seconds": seconds,
                    "peak_memory_bytes": 0,
                    "cached": cached,
                    "recalled": recalled,
                }
            },
        ).write(place / RESULT)


def table(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    assert main([str(folder)]) == 0
    return [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]


def test_runs_of_other_settings_are_no_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another calibration set tells a method apart only where one method has two; it never makes a pair."""
    write(tmp_path, [70.0, 80.0, 90.0], samples=16)
    write(tmp_path, [72.0, 83.0, 91.0], "in_context", samples=64, propagate="dense")
    assert main([str(tmp_path)]) == 2
    assert "no allocation has the seed, sparsity and pruner of a uniform one" in capsys.readouterr().err
    write(tmp_path, [60.0, 70.0, 80.0], samples=64)
    (row,) = table(tmp_path, capsys)
    assert row[5:10] == ["3", "70.00", "82.00", "+12.0 ± 2.5", "better"]


@pytest.mark.parametrize("names", [(None, None), ("EPYC", "EPYC"), ("EPYC", "H100")])
def test_seconds_of_several_machines_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str | None, str | None]
) -> None:
    """Beside the table, which is for other programs."""
    write(tmp_path, [70.0, 80.0])
    write(tmp_path, [72.0, 83.0], "er")
    for path, name in zip(sorted(tmp_path.rglob(RESULT)), [*names, *names], strict=True):
        known = name and {"device": "cpu", "name": name, "threads": 1, "processes": 1}
        replace(Result.read(path), hardware=known).write(path)
    assert main([str(tmp_path)]) == 0
    note = "note: seconds can't be compared across hardware: EPYC; H100\n"
    assert capsys.readouterr().err == (note if "H100" in names else "")


def test_a_uniform_run_on_the_same_samples_is_the_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several that differ by the path of the calibration data alone."""
    for path, uniform, other in (("a", [70.0, 80.0], [71.0, 82.0]), ("b", [60.0, 70.0], [63.0, 74.0])):
        write(tmp_path, uniform, path=path)
        write(tmp_path, other, "er", path=path)
    found = [row[4:5] + row[6:9] for row in table(tmp_path, capsys)]
    assert found == [
        ["er, calibration.path=a", "75.00", "76.50", "+1.5 ± 6.4"],
        ["er, calibration.path=b", "65.00", "68.50", "+3.5 ± 6.4"],
    ]
    of_page = [
        row.uniform.mean for row in rows_of(make_tables(make_sections(read_runs(tmp_path)))[0]) if row.uniform
    ]
    assert of_page == [1.5, 3.5]


def test_tuned_runs_pair_with_tuned_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mask alone has a uniform run that looks the same but for its steps."""
    write(tmp_path, [60.0, 61.0])
    write(tmp_path, [63.0, 64.0], coarse="owl", tuned=12.0)
    assert main([str(tmp_path)]) != 0  # nothing to pair: the uniform runs were not tuned
    capsys.readouterr()
    write(tmp_path, [60.0, 61.0], tuned=16.0)
    (row,) = table(tmp_path, capsys)
    assert row[6:8] == ["76.50", "75.50"]


def test_settings_of_unused_fine_tuning_split_no_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [60.0, 61.0], rate=1e-4)
    write(tmp_path, [63.0, 65.0], coarse="owl")
    (row,) = table(tmp_path, capsys)
    assert row[6:8] == ["60.50", "64.00"]


def test_uniform_runs_on_other_samples_are_no_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where there are no others; a run that needs no calibration data is a pair of any."""
    write(tmp_path, [70.0, 80.0], path="a")
    write(tmp_path, [71.0, 82.0], "er", path="b")
    assert main([str(tmp_path)]) == 2
    assert "on the same calibration samples" in capsys.readouterr().err
    write(tmp_path, [60.0, 70.0], pruner="magnitude")
    write(tmp_path, [61.0, 72.0], "er", pruner="magnitude", path="b")
    (row,) = table(tmp_path, capsys)
    assert row[3:8] == ["magnitude", "er", "2", "65.00", "66.50"]


@pytest.mark.parametrize("method", ["dense", "pruned", "layer"])
def test_a_uniform_run_of_the_same_propagate_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    """Another one is a pair only where there is none, and then the first in the order of methods."""
    write(tmp_path, [60.0], propagate="pruned")
    write(tmp_path, [50.0], propagate="dense")
    write(tmp_path, [62.0], "in_context", propagate=method)
    (row,) = table(tmp_path, capsys)
    assert row[6] == {"dense": "50.00", "pruned": "60.00", "layer": "50.00"}[method]
    sections = make_sections(read_runs(tmp_path))
    (of_page,) = (one.uniform for one in rows_of(make_tables(sections)[0]) if one.method.score != "none")
    assert of_page == Difference(62.0 - float(row[6]))


def test_differences_are_taken_seed_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [70.0, 80.0, 90.0])
    write(tmp_path, [72.0, 83.0, 91.0], "in_context", seconds=7.5)
    (row,) = table(tmp_path, capsys)
    # The differences are 2, 3 and 1: mean 2, deviation 1, t = 4.303, sqrt(3) = 1.732.
    expected = ["m", "accuracy", "0.5", "wanda", "in context", "3", "80.00", "82.00"]
    assert row == [*expected, "+2.0 ± 2.5", "no difference", "7.5"]


def test_a_difference_beyond_its_interval_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [70.0, 80.0, 90.0])
    write(tmp_path, [75.0, 85.1, 95.0], "in_context")
    write(tmp_path, [60.0, 70.0, 80.1], "owl")
    assert [row[4:5] + row[9:10] for row in table(tmp_path, capsys)] == [
        ["in context", "better"],
        ["owl", "worse"],
    ]


def test_smaller_perplexities_are_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [70.0, 80.0, 90.0], metric="perplexity")
    write(tmp_path, [60.0, 70.1, 80.0], "in_context", metric="perplexity")
    assert table(tmp_path, capsys)[0][9] == "better"


def test_only_shared_seeds_and_equal_pruners_are_paired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [70.0, 80.0])
    write(tmp_path, [71.0, 82.0, 0.0], "in_context")
    write(tmp_path, [99.0], "in_context", pruner="admm")
    write(tmp_path, [50.0], "in_context", sparsity=0.7)
    (row,) = table(tmp_path, capsys)
    assert row[5:9] == ["2", "75.00", "76.50", "+1.5 ± 6.4"]


def test_one_seed_has_no_interval_and_a_cached_stage_no_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [70.0])
    write(tmp_path, [75.0], "in_context", cached=True)
    (row,) = table(tmp_path, capsys)
    assert row[8:10] == ["+5", "one seed"]
    assert row[10:] in ([], [""])


def test_a_stage_that_was_cached_in_part_is_no_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its seconds leave out those of what was read, as after a stop."""
    write(tmp_path, [70.0])
    write(tmp_path, [75.0], "evopress", recalled=3, seconds=12.0)
    (row,) = table(tmp_path, capsys)
    assert row[10:] in ([], [""])
    write(tmp_path, [65.0], "evopress", sparsity=0.6, seconds=9.0)
    (row,) = table(tmp_path, capsys)
    assert row[10] == "9"


@pytest.mark.parametrize(
    ("uniform", "figures", "shown"),
    [
        ([70.0, 80.0], [math.inf, math.inf], ["+inf", "worse"]),
        ([math.inf, math.inf], [70.0, 80.0], ["-inf", "better"]),
        ([70.0, 80.0], [math.inf, 82.0], ["+inf", "no verdict"]),
        ([70.0, math.inf], [math.inf, 82.0], ["nan", "no verdict"]),
        ([math.inf, math.inf], [math.inf, math.inf], ["nan", "no verdict"]),
        ([70.0, 80.0], [math.nan, 82.0], ["nan", "no verdict"]),
    ],
)
def test_infinite_figures_tell_only_where_one_side_has_nothing_else(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    uniform: list[float],
    figures: list[float],
    shown: list[str],
) -> None:
    write(tmp_path, uniform, metric="perplexity")
    write(tmp_path, figures, "in_context", metric="perplexity")
    assert table(tmp_path, capsys)[0][8:10] == shown


@pytest.mark.parametrize(("change", "shown"), [(0.1, ["+0.1", "no verdict"]), (0.0, ["+0", "no difference"])])
def test_differences_without_spread_have_no_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: float, shown: list[str]
) -> None:
    """Seeds that happen to agree, but for rounding, don't show that others would."""
    figures = [70.0, 80.3, 91.0]
    write(tmp_path, figures)
    write(tmp_path, [figure + change for figure in figures], "in_context")
    assert table(tmp_path, capsys)[0][8:10] == shown


@pytest.mark.parametrize(
    ("uniform", "figures", "shown"),
    [
        ([0.1 + 0.2, 0.7], [0.3, 0.7], ["+0", "no difference"]),
        ([94.03, 94.36, 94.2], [94.03 + 0.1, 94.36 - 0.2, 94.2 + 0.1], ["+0.00 ± 0.43", "no difference"]),
    ],
)
def test_rounding_is_no_difference(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    uniform: list[float],
    figures: list[float],
    shown: list[str],
) -> None:
    write(tmp_path, uniform)
    write(tmp_path, figures, "in_context")
    assert table(tmp_path, capsys)[0][8:10] == shown
    sections = make_sections(read_runs(tmp_path))
    (of_page,) = (one.uniform for one in rows_of(make_tables(sections)[0]) if one.method.score != "none")
    assert of_page is not None
    assert of_page.mean == 0


def test_without_uniform_runs_there_is_nothing_to_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [70.0], "in_context")
    assert main([str(tmp_path)]) == 2
    assert "score=none allocation=water_filling" in capsys.readouterr().err


def test_the_interval_is_that_of_student() -> None:
    assert interval([1.0]) is None
    assert interval([1.0, 1.0, 1.0]) is None
    assert interval([1.0, 3.0]) == pytest.approx(12.706, rel=1e-6)
    for count, quantile in ((11, 2.22814), (12, 2.20099), (21, 2.08596), (31, 2.04227), (100, 1.98422)):
        assert student(count) == pytest.approx(quantile, rel=1e-4)
    assert interval([0.0, 2.0] * 50) == pytest.approx(1.984216952 * (100 / 99) ** 0.5 / 10, rel=1e-6)


def test_models_across_counts_verdicts_and_shows_each_model_in_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Allocations that are more often better come first. Model c has one mask, and the others two."""
    for model, metric, uniform in (("a", "accuracy", 70.0), ("b", "perplexity", 40.0)):
        write(tmp_path, [uniform, uniform + 1], model=model, metric=metric)
        write(tmp_path, [uniform + 8, uniform + 9.1], "er", model=model, metric=metric, seconds=2.5)
        write(tmp_path, [uniform, uniform + 2], "owl", model=model, metric=metric, seconds=0.5)
        write(tmp_path, [uniform], model=model, metric=metric, mask="n:4")
        write(tmp_path, [uniform + 5], "er", model=model, metric=metric, mask="n:4", cached=True)
    write(tmp_path, [70.0], "atp", model="a", mask="n:4", cached=True)
    write(tmp_path, [50.0], model="c")
    write(tmp_path, [49.0], "owl", model="c", seconds=0.4)
    assert main([str(tmp_path), "--models-across"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| better / neither / worse than uniform | wanda, pruner.mask=n:4 | wanda, pruner.mask=row |",
        "| --- | ---: | ---: |",
        "| atp | 0 / 1 / 0 |  |",
        "| er | 0 / 2 / 0 | 1 / 0 / 1 |",
        "| owl |  | 0 / 3 / 0 |",
        "",
        "| wanda, pruner.mask=n:4 at 0.5 | a accuracy | b perplexity | coarse seconds |",
        "| --- | ---: | ---: | ---: |",
        "| uniform | 70.00 | 40.00 |  |",
        "| atp | 70.00 (+0) |  |  |",
        "| er | 75.00 (+5) | 45.00 (+5) |  |",
        "",
        "| wanda, pruner.mask=row at 0.5 | a accuracy | b perplexity | c accuracy | coarse seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| uniform | 70.50 | 40.50 | 50.00 |  |",
        "| er | 78.55 (+8.05 ± 0.64) | 48.55 (+8.05 ± 0.64) ▼ |  | 2.5 |",
        "| owl | 71.00 (+0.5 ± 6.4) | 41.00 (+0.5 ± 6.4) | 49.00 (-1) | 0.5 |",
    ]


def test_two_tasks_with_one_metric_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for coarse, figures in (("none", [70.0]), ("er", [75.0])):
        write(tmp_path, figures, coarse, model="a", other=-20.0 if coarse == "er" else 0.0)
        write(tmp_path, figures, coarse, model="b")
    assert [row[:2] for row in table(tmp_path, capsys)] == [
        ["a", "gqa/accuracy"],
        ["a", "vqa/accuracy"],
        ["b", "accuracy"],
    ]
    assert main([str(tmp_path), "--models-across"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "| wanda at 0.5 | a gqa/accuracy | a vqa/accuracy | b accuracy | coarse seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| uniform | 70.00 | 70.00 | 70.00 |  |",
        "| er | 55.00 (-15) | 75.00 (+5) | 75.00 (+5) | 1 |",
    ]


def test_the_row_of_uniform_has_the_most_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [60.0, 70.0, 80.0])
    write(tmp_path, [61.0, 71.0, 81.0], "er")
    write(tmp_path, [60.0], "owl")
    assert main([str(tmp_path), "--models-across"]) == 0
    assert "| uniform | 70.00 |  |" in capsys.readouterr().out


def test_perplexities_whose_squares_overflow_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [1e200, 2e200, 3e200], metric="perplexity")
    write(tmp_path, [5e200, 7e200, 9e200], "er", metric="perplexity")
    (row,) = table(tmp_path, capsys)
    assert row[6:10] == ["2.000e+200", "7.000e+200", "+5e+200 ± 2.5e+200", "worse"]
