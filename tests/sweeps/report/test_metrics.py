"""Which figures a report shows, and their statistics."""

from __future__ import annotations

import math
import statistics as reference
from pathlib import Path

import pytest

from ecoflap.errors import UserError
from ecoflap.storage.results import Result
from ecoflap.sweeps.report.cells import statistics
from ecoflap.sweeps.report.metrics import MetricTable, best, make_tables, other_tables
from ecoflap.sweeps.report.runs import read_runs
from ecoflap.sweeps.report.sections import make_sections
from tests.sweeps.report.conftest import write_run

TOLD = {"wmt/ter": False, "wmt/bleu": True, "crows/likelihood_diff": False, "odd/score": False}
HARNESS = {"metric": "lm-evaluation-harness", "higher_is_better": TOLD}

SUITE = {
    "mean": {"accuracy": 75.0, "tasks": 2.0},
    "dtd": {"accuracy": 70.0, "top_5": 90.0},
    "eurosat": {"accuracy": 80.0, "top_5": 95.0},
}


def tables(folder: Path, *asked: str) -> list[MetricTable]:
    return make_tables(make_sections(read_runs(folder)), asked)


def test_statistics_are_those_of_the_standard_library() -> None:
    values = [70.0, 71.5, 75.25, 60.0]
    mean, deviation = statistics(values)
    assert mean == pytest.approx(reference.fmean(values))
    assert deviation == pytest.approx(reference.stdev(values))
    assert statistics([3.0]) == (3.0, None)


def test_all_that_share_the_best_mean_are_named(tmp_path: Path) -> None:
    for pruner, figure in (("wanda", 75.0), ("sparsegpt", 75.0), ("magnitude", 60.0)):
        write_run(tmp_path, pruner, figure, pruner__name=pruner)
    (table,) = tables(tmp_path)
    (found,) = best(table)
    assert {label.partition(",")[0] for label in found.methods} == {"wanda", "sparsegpt"}
    assert (found.sparsity, found.mean, found.others) == (0.5, 75.0, 1)


def test_a_suite_shows_its_mean_and_each_task(tmp_path: Path) -> None:
    write_run(tmp_path, "a", SUITE, dense=SUITE)
    assert [table.name for table in tables(tmp_path)] == ["mean/accuracy", "dtd/accuracy", "eurosat/accuracy"]
    assert [table.title for table in tables(tmp_path)] == [
        "tiny, mean of 2 tasks",
        "tiny on dtd",
        "tiny on eurosat",
    ]


def test_asked_metrics_replace_the_headlines(tmp_path: Path) -> None:
    write_run(tmp_path, "a", SUITE, dense=None)
    write_run(tmp_path, "b", 70.0)
    assert [table.name for table in tables(tmp_path, "eurosat/top_5", "vqa/loss")] == [
        "eurosat/top_5",
        "vqa/loss",
    ]
    with pytest.raises(UserError, match="--metric dtd/top5: no run here has it; did you mean dtd/top_5"):
        tables(tmp_path, "dtd/top5")


def test_a_metric_may_have_slashes_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path, "a", {"lm_eval": {"hellaswag/acc": 0.5}}, dense=None)
    (table,) = tables(tmp_path)
    assert (table.task, table.metric) == ("lm_eval", "hellaswag/acc")


@pytest.mark.parametrize(
    "metric",
    [
        "perplexity",
        "loss",
        "word_error_rate",
        "mae",
        "rms_calibration_error",
        "wikitext/bits_per_byte,none",
        "wmt/ter",
        "asr/cer,none",
        "rmse",
        "crows/likelihood_diff",
        "bbq/amb_bias_score",
    ],
)
def test_smaller_is_better(tmp_path: Path, metric: str) -> None:
    write_run(tmp_path, "a", {"task": {metric: 1.0}}, dense=None)
    (table,) = tables(tmp_path)
    assert table.direction == "lower is better"


@pytest.mark.parametrize(
    "metric",
    ["accuracy", "cider", "correlation", "text_recall_1", "iou", "lossless", "hellaswag/acc", "wmt/inter"],
)
def test_higher_is_better(tmp_path: Path, metric: str) -> None:
    write_run(tmp_path, "a", {"task": {metric: 1.0}}, dense=None)
    (table,) = tables(tmp_path)
    assert table.direction == "higher is better"


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("odd/score", "lower"),
        ("odd/score,strict-match", "lower"),
        ("odd/score_change", "lower"),
        ("group/score", "lower"),  # all of its tasks that tell say so
        ("wmt/bleu", "higher"),
        ("other/error", "lower"),  # by its words
    ],
)
def test_a_harness_tells_the_direction(tmp_path: Path, metric: str, direction: str) -> None:
    write_run(tmp_path, "a", {"h": {metric: 1.0}}, dense=None, record={"data": {"tasks": {"h": HARNESS}}})
    (table,) = tables(tmp_path)
    assert table.direction == f"{direction} is better"


def test_tasks_that_do_not_agree_tell_nothing_of_their_group(tmp_path: Path) -> None:
    record = {"data": {"tasks": {"h": {**HARNESS, "higher_is_better": {"a/score": True, "b/score": False}}}}}
    write_run(tmp_path, "a", {"h": {"group/score": 1.0, "b/score": 1.0}}, dense=None, record=record)
    group, one = tables(tmp_path, "h/group/score", "h/b/score")
    assert (group.direction, one.direction) == ("higher is better", "lower is better")


def test_units(tmp_path: Path) -> None:
    """A harness's fractions are no percent, and neither is the mean of such."""
    mine = {"accuracy": 70.0, "macro_f1": 60.0}
    tasks = {"mine": {"metric": "accuracy of the likeliest class"}, "h": HARNESS}
    write_run(tmp_path, "a", {"mine": mine}, dense=None, record={"data": {"tasks": tasks}})
    assert [one.unit for one in tables(tmp_path, "mine/accuracy", "mine/macro_f1")] == ["%", "%"]
    figures = {"mean": {"pope/pope_accuracy": 0.5}, "h": {"pope/pope_accuracy": 0.5}}
    write_run(tmp_path / "b", "b", figures, dense=None, record={"data": {"tasks": {"h": HARNESS}}})
    assert [one.unit for one in tables(tmp_path / "b")] == ["", ""]


def test_the_dense_figure_is_a_range_where_runs_measured_different_ones(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0, dense=80.0, score__eps=0.1)
    write_run(tmp_path, "b", 70.0, dense=82.0, score__eps=0.2)
    write_run(tmp_path, "c", 70.0, dense=math.nan, score__eps=0.3)
    write_run(tmp_path, "d", 70.0, dense=None, score__eps=0.4)
    (table,) = tables(tmp_path)
    assert table.dense == [80.0, 82.0]


def test_missing_cells_stay_missing(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0, sparsity=0.5)
    write_run(tmp_path, "b", 60.0, sparsity=0.7, score={"name": "none"})
    (table,) = tables(tmp_path)
    assert table.sparsities == [0.5, 0.7]
    assert [list(row) for row in table.cells.values()] == [[0.7], [0.5]]


def test_a_count_is_no_metric(tmp_path: Path) -> None:
    """Of answers that a server scores, a run knows only how many there are."""
    write_run(
        tmp_path, "a", {"vqav2": {"questions": 12.0}, "gqa": {"questions": 12.0, "accuracy": 1.0}}, dense=None
    )
    assert [table.name for table in tables(tmp_path)] == ["gqa/accuracy"]
    assert Result.read(tmp_path / "a" / "result.json").headline() == 1.0


def test_counts_are_not_among_the_other_metrics(tmp_path: Path) -> None:
    counts = {"images": 3.0, "sentences": 4.0, "hellaswag/samples": 5.0}
    write_run(tmp_path, "a", {"t": {**counts, "accuracy": 1.0, "top_5": 2.0, "tasks": 2.0}}, dense=None)
    shown = tables(tmp_path)
    assert [table.name for table in shown] == ["t/accuracy"]
    (section,) = make_sections(read_runs(tmp_path))
    assert [table.name for table in other_tables(section, shown)] == ["t/top_5"]


def test_what_is_an_int_in_every_run_is_a_count(tmp_path: Path) -> None:
    write_run(tmp_path, "a", {"t": {"accuracy": 1.0, "guesses": 25, "score": 0}}, dense=None)
    write_run(tmp_path, "b", {"t": {"accuracy": 1.0, "guesses": 25, "score": 0.5}}, seed=1, dense=None)
    (section,) = make_sections(read_runs(tmp_path))
    assert [table.name for table in other_tables(section, tables(tmp_path))] == ["t/score"]
