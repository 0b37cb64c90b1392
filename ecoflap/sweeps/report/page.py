"""The page of a report: one HTML file that includes its plots, and each plot as PNG and PDF."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ecoflap.storage.results.bench import Bench, cells_of, columns_of, machine_line, read_bench
from ecoflap.sweeps.report.metrics import MetricTable
from ecoflap.sweeps.report.page_section import Plots, describe_section
from ecoflap.sweeps.report.runs import Run, Unfinished, hardware_of
from ecoflap.sweeps.report.sections import Section
from ecoflap.sweeps.report.settings import AXES, fixed_and_varying
from ecoflap.sweeps.report.table import figure

NAME = "index.html"
PLOT = re.compile(r'<figure data-name="([A-Za-z0-9._-]+)"')
"""A plot of a page, with the name of its files."""


def write_page(
    folder: Path,
    title: str,
    sections: Sequence[Section],
    tables: Sequence[MetricTable],
    unfinished: Sequence[Unfinished],
    source: str,
) -> Path:
    """Write the page and its plots into a folder, in place of an earlier page and its plots.

    Args:
        folder: the folder; created if it does not exist.
        title: the page's heading.
        sections: the runs, by model and tasks.
        tables: the metrics to show.
        unfinished: runs without a result.
        source: the folder of the runs, for the page's head.

    Returns:
        The file of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_plots(folder)
    runs = [run for section in sections for run in section.runs]
    named = {key for section in sections for method in section.methods for key, _ in method.settings}
    constant, varying = fixed_and_varying(runs, named)
    plots = Plots(folder)
    environment = Environment(
        loader=PackageLoader("ecoflap.sweeps.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    tables_of = [(section, [table for table in tables if table.section is section]) for section in sections]
    html = environment.get_template("page.html").render(
        title=title,
        source=source,
        runs=runs,
        sections=[describe_section(section, own, plots) for section, own in tables_of],
        unfinished=unfinished,
        constant=constant,
        varying=[(key, values, _part(key, named)) for key, values in varying.items()],
        origins=_origins(runs),
        hardware=hardware_of(runs).most_common(),
        metrics=list(dict.fromkeys(table.name for table in tables)),
        rows=[row for section, own in tables_of for row in _rows(section, own)],
        benches=[_bench(run, found) for run in runs if (found := read_bench(run.folder)) is not None],
    )
    path = folder / NAME
    path.write_text(html, encoding="utf-8", errors="replace")  # a folder's name may be in another one
    return path


def _remove_plots(folder: Path) -> None:
    """Remove the plots of an earlier page, which may be of runs or metrics that the new one doesn't have."""
    page = folder / NAME
    text = page.read_text(encoding="utf-8", errors="ignore") if page.is_file() else ""
    for name in PLOT.findall(text):
        for suffix in ("png", "pdf"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def _bench(run: Run, bench: Bench) -> dict[str, Any]:
    """What ``ecoflap bench`` measured beside a run: its table, and how it was measured."""
    return {
        "run": run.name,
        "record": bench,
        "machine": machine_line(bench),
        "columns": columns_of(bench),
        "rows": cells_of(bench),
    }


def _rows(section: Section, tables: Sequence[MetricTable]) -> Iterator[dict[str, Any]]:
    """The rows of the table of all runs."""
    for method, run in zip(section.methods, section.runs, strict=True):
        measured = {
            table.name: table.cells.get(method, {}).get(run.sparsity, {}).get(run.seed) for table in tables
        }
        costs = run.result.steps.values()
        yield {
            "run": run,
            "model": section.model,
            "method": method.label,
            "figures": {name: one.pruned for name, one in measured.items() if one is not None},
            "seconds": sum(cost["seconds"] for cost in costs),
            "gibibytes": max((cost["peak_memory_bytes"] for cost in costs), default=0) / 2**30,
            "commit": _commit(run),
        }


def _part(key: str, named: Collection[str]) -> str:
    """The role of a key that differs between runs; empty if it follows from a key that names methods."""
    if key in AXES:
        return "the axis" if key == "sparsity" else "averaged over"
    if key == "model.name":
        return "names models"
    return "names methods" if key in {"pruner.name", "score.name", *named} else ""


def _commit(run: Run) -> str:
    """The abbreviated commit, with a mark if files differed from it."""
    git = run.result.git
    return "" if git is None else git["commit"][:10] + (" + changes" if git["dirty"] else "")


def _origins(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    """The library versions of the runs, each with its commits and their numbers of runs."""
    commits: dict[str, Counter[str]] = {}
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.result.versions.items() if version)
        commits.setdefault(versions, Counter())[_commit(run)] += 1
    return [(versions, counts.most_common()) for versions, counts in commits.items()]
