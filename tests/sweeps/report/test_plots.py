"""What the charts show; how they look is for people to judge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from ecoflap.sweeps.report import cost_plot
from ecoflap.sweeps.report.allocation_plot import FEW, allocation_png, plot_allocation
from ecoflap.sweeps.report.allocations import Line, lines_of
from ecoflap.sweeps.report.cost_plot import costs_of, plot_costs
from ecoflap.sweeps.report.metric_plot import plot_metric, unshown
from ecoflap.sweeps.report.metrics import make_tables
from ecoflap.sweeps.report.runs import read_runs
from ecoflap.sweeps.report.sections import Section, make_sections
from ecoflap.sweeps.report.style import COLOURS, look, save, wrapped
from tests.sweeps.report.conftest import STEPS, write_run

pytestmark = pytest.mark.long

PNG = b"\x89PNG\r\n\x1a\n"


def section_of(folder: Path) -> Section:
    (section,) = make_sections(read_runs(folder))
    return section


def metric_figure(folder: Path) -> Figure:
    section = section_of(folder)
    (table,) = make_tables([section])
    return plot_metric(table, {method: rank for rank, method in enumerate(section.by_method)})


def error_bars(figure: Figure) -> list[bool]:
    return [
        bool(drawn.has_yerr) for drawn in figure.axes[0].containers if isinstance(drawn, ErrorbarContainer)
    ]


def test_lines_against_sparsity_with_bars_where_there_are_seeds(tmp_path: Path) -> None:
    for sparsity in (0.5, 0.6):
        write_run(tmp_path, f"one{sparsity}", 70.0, sparsity=sparsity, score={"name": "none"})
        for seed in (0, 1):
            write_run(tmp_path, f"{sparsity}{seed}", 60.0 + seed, sparsity=sparsity, seed=seed)
    figure = metric_figure(tmp_path)
    axes = figure.axes[0]
    assert error_bars(figure) == [False, True]
    assert axes.get_yscale() == "linear"
    assert "higher is better" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.5", "0.6"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "wanda, uniform",
        "wanda, zeroth order",
    ]
    assert "dense 80" in [text.get_text() for text in axes.texts]


def test_the_axis_is_the_realised_sparsity(tmp_path: Path) -> None:
    for target, realised in ((0.5, 0.48), (0.6, 0.62)):
        write_run(tmp_path, str(target), 70.0, sparsity=target, blocks={"text": [realised]})
    axes = metric_figure(tmp_path).axes[0]
    assert list(axes.lines[0].get_xdata()) == pytest.approx([0.48, 0.62])
    assert axes.get_xlabel().startswith("realised sparsity")


@pytest.mark.parametrize(("worst", "scale"), [(50.0, "linear"), (5000.0, "log")])
def test_perplexities_over_decades_are_on_a_log_axis(tmp_path: Path, worst: float, scale: str) -> None:
    for seed, factor in enumerate((0.1, 1.9)):  # a deviation larger than its mean
        write_run(
            tmp_path,
            f"a{seed}",
            {"text": {"perplexity": 9.0}},
            dense={"text": {"perplexity": 8.0}},
            seed=seed,
        )
        write_run(
            tmp_path,
            f"b{seed}",
            {"text": {"perplexity": worst * factor}},
            dense={"text": {"perplexity": 8.0}},
            sparsity=0.7,
            seed=seed,
        )
    axes = metric_figure(tmp_path).axes[0]
    assert axes.get_yscale() == scale
    assert "lower is better" in axes.get_ylabel()
    assert axes.get_ylim()[0] < 8.0 < worst < axes.get_ylim()[1]
    if scale == "log":
        assert axes.get_ylim()[0] > 1


def test_one_sparsity_gives_a_row_per_method(tmp_path: Path) -> None:
    for cap in (0.6, 0.8, 1.0):
        write_run(tmp_path, str(cap), 70.0, allocation__cap=cap)
    figure = metric_figure(tmp_path)
    assert [text.get_text().replace("\n", " ") for text in figure.axes[0].get_yticklabels()] == [
        f"wanda, zeroth order, allocation.cap={cap}" for cap in ("0.6", "0.8", "1")
    ]
    assert "accuracy, % (higher is better), at sparsity 0.5" in figure.get_supxlabel()
    assert not figure.legends
    figure.draw_without_rendering()
    label = next(text for text in figure.texts if "at sparsity" in text.get_text()).get_window_extent()
    assert 0 <= label.x0 < label.x1 <= figure.bbox.width


def test_what_is_not_finite_is_named_and_breaks_the_line(tmp_path: Path) -> None:
    for sparsity, value in ((0.5, 9.0), (0.6, math.inf), (0.7, math.nan), (0.8, 12.0)):
        write_run(tmp_path, str(sparsity), {"text": {"perplexity": value}}, dense=None, sparsity=sparsity)
    (table,) = make_tables([section_of(tmp_path)])
    assert unshown(table) == ["wanda, zeroth order at 0.6 (inf)", "wanda, zeroth order at 0.7 (nan)"]
    axes = metric_figure(tmp_path).axes[0]
    assert "not shown: wanda, zeroth order at 0.6 (inf)" in axes.get_xlabel()
    assert [math.isnan(value) for value in axes.lines[0].get_ydata()] == [False, True, True, False]


def test_nothing_finite_at_all(tmp_path: Path) -> None:
    for sparsity in (0.5, 0.6):
        write_run(
            tmp_path,
            str(sparsity),
            {"text": {"perplexity": math.inf}},
            dense={"text": {"perplexity": math.nan}},
            sparsity=sparsity,
        )
    assert save(metric_figure(tmp_path), tmp_path, "chart").startswith("<svg")


def test_methods_that_share_an_allocation_share_a_line(tmp_path: Path) -> None:
    for index, pruner in enumerate(("wanda", "sparsegpt")):
        for seed in (0, 1):
            write_run(
                tmp_path,
                f"u{index}{seed}",
                70.0,
                blocks={"text": [0.5, 0.5]},
                pruner__name=pruner,
                score={"name": "none"},
                seed=seed,
            )
            write_run(
                tmp_path,
                f"z{index}{seed}",
                70.0,
                blocks={"text": [0.4 - 0.1 * seed, 0.6]},
                pruner__name=pruner,
                seed=seed,
            )
    section = section_of(tmp_path)
    lines = lines_of(section, {method: rank for rank, method in enumerate(section.by_method)})
    assert [(line.label, line.rank) for line in lines[0.5]] == [("uniform", 0), ("zeroth order", 1)]
    assert lines[0.5][1].block_values("text") == [pytest.approx([0.4, 0.3]), pytest.approx([0.6, 0.6])]
    assert lines[0.5][1].means("text") == pytest.approx([0.35, 0.6])
    assert lines[0.5][1].means("vision") == []
    assert [text.get_text() for text in plot_allocation(lines).legends[0].get_texts()] == [
        "uniform",
        "zeroth order",
    ]


def test_allocations_that_differ_with_the_pruner_keep_its_name(tmp_path: Path) -> None:
    write_run(tmp_path, "0", 70.0, blocks={"text": [0.4, 0.6]})
    write_run(tmp_path, "1", 70.0, blocks={"text": [0.6, 0.4]}, pruner__name="sparsegpt")
    section = section_of(tmp_path)
    lines = lines_of(section, {method: rank for rank, method in enumerate(section.by_method)})
    assert [line.label for line in lines[0.5]] == ["sparsegpt, zeroth order", "wanda, zeroth order"]


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 14])
def test_panels_per_tower_and_target_as_lines_or_maps(tmp_path: Path, count: int) -> None:
    towers = {"vision": 39, "encoder": 24, "decoder": 24}
    blocks = {
        tower: {f"{tower}.{index}": 0.5 + index / 100 for index in range(length)}
        for tower, length in towers.items()
    }
    lines = {
        target: [Line(f"method {rank} with a name that is rather long", rank, [blocks])] * count
        for target in (0.5, 0.6)
        for rank in [0]
    }
    figure = plot_allocation(lines)
    panels = figure.axes[:6]
    assert [axes.get_title(loc="left") for axes in panels[:3]] == [
        f"{tower}, {length} blocks" for tower, length in towers.items()
    ]
    maps = [[drawn for drawn in axes.collections if isinstance(drawn, QuadMesh)] for axes in panels]
    assert [len(drawn) for drawn in maps] == [int(count > FEW)] * 6
    if count > FEW:
        assert maps[0][0].get_array().shape == (count, 39)
        assert maps[0][0].get_array()[0, 10] == pytest.approx(0.1)
    assert save(figure, tmp_path, "chart").startswith("<svg")


def test_one_run_as_a_picture() -> None:
    layers = {f"layers.{index}.q": {"tower": "text", "size": 10} for index in range(3)}
    assert allocation_png("tiny", layers, {name: 5 for name in layers}, 0.5).startswith(PNG)


def test_the_cost_of_a_step_is_the_largest_over_the_runs(tmp_path: Path) -> None:
    for seed, seconds in enumerate((0.01, 9.0, 4.0)):
        cost = {"seconds": seconds, "peak_memory_bytes": (3 - seed) * 2**30, "cached": False}
        write_run(tmp_path, str(seed), 70.0, seed=seed, record={"steps": {"score": cost}})
    costs = costs_of(section_of(tmp_path))
    assert [(step, *cost) for row in costs.values() for step, cost in row.items()] == [("score", 9.0, 3.0)]


def test_a_step_that_was_read_from_the_cache_costs_nothing(tmp_path: Path) -> None:
    for seed, read in enumerate(({"calibrate": True, "score": True}, {"calibrate": True, "score": False})):
        steps = {
            step: {"seconds": 5.0 - seed, "peak_memory_bytes": 2**30, "cached": cached}
            for step, cached in read.items()
        }
        write_run(tmp_path, str(seed), 70.0, seed=seed, record={"steps": steps})
    assert costs_of(section_of(tmp_path)) == {
        "once for zeroth order": {"score": (4.0, 1.0)},
        "wanda, zeroth order": {},
    }


def test_shared_steps_stand_apart_whichever_run_came_first(tmp_path: Path) -> None:
    first = {step: {"seconds": 5.0, "peak_memory_bytes": 2**30, "cached": False} for step in STEPS}
    later = {
        step: {**cost, "cached": step in ("calibrate", "evaluate_dense")} for step, cost in first.items()
    }
    write_run(tmp_path, "0", 70.0, score={"name": "none"}, record={"steps": first})
    write_run(tmp_path, "1", 70.0, record={"steps": later})
    costs = costs_of(section_of(tmp_path))
    assert list(costs) == ["once for all runs", "wanda, uniform", "wanda, zeroth order"]
    assert list(costs["once for all runs"]) == ["calibrate", "evaluate_dense"]
    own = ["load", "score", "allocate", "prune", "evaluate"]
    assert list(costs["wanda, uniform"]) == list(costs["wanda, zeroth order"]) == own
    labels = [text.get_text() for text in plot_costs(costs).axes[0].get_yticklabels()]
    assert labels == list(costs)


def test_steps_stand_in_their_order_and_unknown_ones_at_the_end(tmp_path: Path) -> None:
    cost: dict[str, Any] = {"seconds": 1.0, "peak_memory_bytes": 2**30, "cached": False}
    write_run(tmp_path, "a", 70.0, record={"steps": {step: cost for step in ("unknown", *reversed(STEPS))}})
    figure = plot_costs(costs_of(section_of(tmp_path)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*STEPS, "unknown"]


def test_every_step_of_a_run_has_a_colour_of_its_own() -> None:
    assert list(cost_plot.STEPS) == [*STEPS, "finetune", "evaluate_finetuned"]
    assert len(set(cost_plot.STEPS.values())) == len(cost_plot.STEPS)


def test_looks_differ_for_more_methods_than_there_are_colours() -> None:
    assert len({str(look(index)) for index in range(168)}) == 168


@pytest.mark.parametrize("background", ["#ffffff", "#14171c"])
@pytest.mark.parametrize("colour", sorted({*COLOURS, *cost_plot.STEPS.values()}))
def test_colours_stand_out_from_both_backgrounds(colour: str, background: str) -> None:
    """The contrast that WCAG 2 asks of graphics, 3:1."""

    def luminance(name: str) -> float:
        linear = [
            value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(name)
        ]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(colour), luminance(background)), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 3


def test_long_names_break_into_lines() -> None:
    name = (
        "wanda, zeroth order, "
        + " ".join(f"group.option_{index}=value" for index in range(20))
        + " path=/"
        + "x" * 200
    )
    assert max(map(len, wrapped(name, 60).split("\n"))) <= 60


@pytest.mark.parametrize("count", [2, 25])
def test_many_methods_with_long_names_fit_below_the_chart(tmp_path: Path, count: int) -> None:
    for index in range(count):
        for sparsity in (0.5, 0.6):
            skipped = [f"a_rather_long_pattern_{index}_" + "x" * 120]
            write_run(tmp_path, f"{index}{sparsity}", 70.0 - index, sparsity=sparsity, skip_layers=skipped)
    figure = metric_figure(tmp_path)
    figure.draw_without_rendering()
    legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= axes.y0
    assert legend.y0 >= 0
    assert axes.height > 200
