"""The chart of the cost of each step: its seconds, and its peak memory next to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ecoflap.sweeps.report.runs import COARSE_STEPS, Run
from ecoflap.sweeps.report.sections import Section
from ecoflap.sweeps.report.style import COLOURS, WIDTH, legend_below, new_figure, rows_height, styled, wrapped

GREY = "#8a8d92"
BLUE, ORANGE, TEAL, RED, PERIWINKLE, VIOLET = COLOURS
STEPS = {
    "load": GREY,
    "calibrate": BLUE,
    "evaluate_dense": TEAL,
    "score": ORANGE,
    "allocate": PERIWINKLE,
    "prune": VIOLET,
    "evaluate": RED,
    "finetune": "#997700",
    "evaluate_finetuned": "#c4689a",
}
"""The steps in the order of a run, each with its colour."""
HEIGHT = 0.66
"""Height of a method's bar, as a share of its row."""


class Cost(NamedTuple):
    """The largest cost of a step, over the runs that did not read it from the cache.

    Attributes:
        seconds: wall-clock time.
        gibibytes: peak memory.
    """

    seconds: float
    gibibytes: float


Costs = dict[str, dict[str, Cost]]
"""Methods, after what runs share -> step -> its cost."""


def costs_of(section: Section) -> Costs:
    """The largest cost of each step over the runs that did not read it from the cache.

    A step that some run read from the cache is shared, and stands apart: what decides allocations under the
    name of the coarse stage, everything else under that of all runs.
    """
    shared = {step for run in section.runs for step in run.result.steps if step not in _computed(run)}
    together: dict[str, list[tuple[str, Run]]] = {}
    for method, run in zip(section.methods, section.runs, strict=True):
        for step in shared & _computed(run).keys():
            owner = f"once for {method.coarse}" if step in COARSE_STEPS else "once for all runs"
            together.setdefault(owner, []).append((step, run))
    costs = {
        owner: {
            step: _largest([run for one, run in members if one == step], step)
            for step in _in_order({one for one, _ in members})
        }
        for owner, members in sorted(together.items(), key=lambda one: one[0] != "once for all runs")
    }
    for method, runs in section.by_method.items():
        costs[method.label] = {step: _largest(runs, step) for step in _steps(runs) if step not in shared}
    return costs


@styled
def plot_costs(costs: Costs) -> Figure:
    """Plot one bar of steps per method, and the memory of each step as a dot of its colour."""
    steps = _in_order({step for row in costs.values() for step in row})
    labels = [wrapped(label, 30) for label in costs]
    figure = new_figure(WIDTH, 1.3 + rows_height(labels))
    time, memory = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    handles: dict[str, Any] = {}
    for position, row in enumerate(costs.values()):
        start = 0.0
        for step in _in_order(row):
            colour, lane = STEPS.get(step, GREY), HEIGHT * ((steps.index(step) + 0.5) / len(steps) - 0.5)
            bar = time.barh(position, row[step].seconds, left=start, height=HEIGHT, color=colour)
            memory.plot(row[step].gibibytes, position + lane, "o", color=colour, markersize=3.5)
            handles.setdefault(step, bar)
            start += row[step].seconds
    time.set_yticks(range(len(labels)), labels)
    time.set_ylim(len(labels) - 0.45, -0.55)
    time.set_xlabel("wall-clock time, s")
    memory.set_xlabel("peak memory,\nGiB")
    memory.set_xlim(0, 1.08 * max(cost.gibibytes for row in costs.values() for cost in row.values()))
    for axes in (time, memory):
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    legend_below(figure, [handles[step] for step in steps], steps)
    return figure


def _largest(runs: Sequence[Run], step: str) -> Cost:
    found = [computed[step] for run in runs if step in (computed := _computed(run))]
    peak = max(cost["peak_memory_bytes"] for cost in found)
    return Cost(max(cost["seconds"] for cost in found), peak / 2**30)


def _steps(runs: Sequence[Run]) -> list[str]:
    return _in_order({step for run in runs for step in _computed(run)})


def _computed(run: Run) -> dict[str, dict[str, Any]]:
    """The steps that a run did not read from the cache."""
    return {step: cost for step, cost in run.result.steps.items() if not cost["cached"]}


def _in_order(steps: dict[str, Cost] | set[str]) -> list[str]:
    """Steps in the order of a run; unknown ones come last."""
    known = list(STEPS)
    return sorted(steps, key=lambda step: (known.index(step) if step in known else len(known), step))
