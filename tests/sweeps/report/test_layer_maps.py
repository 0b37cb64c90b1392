"""Maps of single layers, from records with known figures."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from ecoflap.cli.report import main
from ecoflap.storage.results import LayerCount, sparsity_section
from ecoflap.sweeps.report.layer_maps import maps_of
from ecoflap.sweeps.report.layer_plot import plot_layers
from ecoflap.sweeps.report.runs import read_runs
from ecoflap.sweeps.report.sections import Section, make_sections
from tests.sweeps.report.conftest import write_run

pytestmark = pytest.mark.long


def section_of(folder: Path) -> Section:
    (section,) = make_sections(read_runs(folder))
    return section


def record(layers: dict[str, tuple[float, float | None]]) -> dict[str, object]:
    """A record of layers of 100 weights, given as {name: (sparsity, error)}."""
    counts = {
        name: LayerCount("text", 100, round(100 * (1 - sparsity)), round(100 * sparsity), error)
        for name, (sparsity, error) in layers.items()
    }
    return {"sparsity": sparsity_section(counts, 0.5, 2000)}


def test_kinds_down_and_blocks_across_means_over_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(
            tmp_path, str(seed), 70.0, seed=seed, blocks={"vision": [0.4, 0.6], "text": [0.5 + seed / 10]}
        )
    target, maps = maps_of(section_of(tmp_path), "sparsity")
    assert target == 0.5
    (towers,) = maps.values()
    assert towers["vision"].kinds == ("attention.q", "mlp.fc1")
    assert towers["vision"].values == pytest.approx(np.array([[0.4, 0.6]] * 2))
    assert towers["text"].values == pytest.approx(np.array([[0.55]] * 2))


def test_only_the_highest_target_and_equal_maps_once(tmp_path: Path) -> None:
    for pruner in ("wanda", "sparsegpt"):
        for sparsity in (0.5, 0.7):
            write_run(
                tmp_path,
                f"{pruner}{sparsity}",
                70.0,
                sparsity=sparsity,
                pruner__name=pruner,
                blocks={"text": [sparsity, sparsity]},
            )
    target, maps = maps_of(section_of(tmp_path), "sparsity")
    assert target == 0.7
    assert list(maps) == ["zeroth order"]


def test_experts_are_averaged_and_what_a_block_lacks_is_blank(tmp_path: Path) -> None:
    layers = {
        "model.layers.0.mlp.experts.0.up.weight": (0.2, 0.1),
        "model.layers.0.mlp.experts.1.up.weight": (0.4, 0.3),
        "model.layers.1.mlp.up.weight": (0.5, 0.5),
    }
    write_run(tmp_path, "a", 70.0, record=record(layers))
    _, maps = maps_of(section_of(tmp_path), "error")
    (towers,) = maps.values()
    assert towers["text"].kinds == ("mlp.experts.*.up", "mlp.up")
    assert towers["text"].values[0, 0] == pytest.approx(0.2)
    assert np.isnan(towers["text"].values).tolist() == [[False, True], [True, False]]


def test_without_errors_there_is_no_map(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0)
    assert maps_of(section_of(tmp_path), "error")[1] == {}


def test_one_scale_for_all_maps_and_shapes_on_the_page(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0, blocks={"vision": [0.1, 0.3], "text": [0.9]})
    write_run(tmp_path, "b", 70.0, blocks={"vision": [0.5, 0.5], "text": [0.5]}, score={"name": "none"})
    maps = maps_of(section_of(tmp_path), "sparsity")[1]
    figure = plot_layers(maps, "title", "sparsity", "viridis")
    scales = [drawn.get_clim() for axes in figure.axes[:4] for drawn in axes.collections]
    assert scales == [pytest.approx((0.1, 0.9))] * 4
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Sparsity of every layer" in html
    plot = html[html.index("Sparsity of every layer") :]
    plot = plot[: plot.index("</figure>")]
    assert plot.count("#fde725") >= 2  # the last colour of the map
    assert len(re.findall("<path", plot)) > 12


def test_a_page_of_many_methods_on_a_large_model_stays_small(tmp_path: Path) -> None:
    for index in range(8):
        blocks = {"vision": [0.4 + index / 100] * 39, "text": [0.5 + index / 100] * 48}
        write_run(tmp_path, str(index), 70.0, blocks=blocks, allocation__cap=index / 12)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "report" / "index.html").stat().st_size < 1e6


def test_errors_that_are_not_exact_are_told_apart(tmp_path: Path) -> None:
    """Also where the name is cut off in the figure, and by the sparsity of the figure."""
    layers = {"layers.0.q.weight": (0.7, 0.2)}
    for pruner, kind, error in (
        ("wanda", "uncorrelated", 0.2),
        ("sparsegpt", "exact", 0.3),
        ("old", None, 0.4),
    ):
        layers = {"layers.0.q.weight": (0.7, error)}
        (made := record(layers))["sparsity"] |= {"errors": kind}  # type: ignore[operator]
        write_run(tmp_path, pruner, 70.0, sparsity=0.7, pruner__name=pruner, record=made)
    maps = maps_of(section_of(tmp_path), "error")[1]
    marked = [name.startswith("as if uncorrelated: ") for name in maps]
    assert [("wanda" in name) for name in maps] == marked
    assert marked.count(True) == 1
    assert not any("uncorrelated" in name for name in maps_of(section_of(tmp_path), "sparsity")[1])
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Error of every layer at target 0.7" in html
    assert "take the columns of the input X as uncorrelated" in html


def test_errors_that_are_not_finite_are_blank(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0, record=record({"layers.0.q.weight": (0.5, float("nan"))}))
    maps = maps_of(section_of(tmp_path), "error")[1]
    assert plot_layers(maps, "title", "error", "magma").axes[0].collections


def test_long_names_of_methods_leave_the_maps_their_room(tmp_path: Path) -> None:
    blocks = {"vision": [0.5, 0.6], "encoder": [0.5, 0.6], "decoder": [0.5, 0.6]}
    write_run(tmp_path, "a", 70.0, blocks=blocks)
    (towers,) = maps_of(section_of(tmp_path), "sparsity")[1].values()
    figure = plot_layers({"a rather long name, " * 5: towers}, "title", "sparsity", "viridis")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    assert all(axes.get_window_extent().width > 50 for axes in figure.axes[:3])
