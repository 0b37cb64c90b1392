"""The report of a sweep, or of one run: a table here, and a folder with a page, its plots and a CSV file.

    ecoflap report outputs/sweeps/SWEEP [--metric TASK/METRIC] [--output FOLDER] [--csv FILE] [--title TITLE]
    ecoflap report SWEEP OTHER [OTHER ...]        the others against the first
    ecoflap report paired SWEEP                   against uniform, seed by seed; --models-across
    ecoflap report recovery SWEEP                 what fine-tuning recovers
    ecoflap report blip2-table SWEEP [SWEEP ...]  table 1 of the paper

Exit code 0: written. 2: wrong usage, nothing to show, or a record cannot be read.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.console.options import WandbOptions
from ecoflap.console.tracking import WandbTracker
from ecoflap.errors import UserError

if TYPE_CHECKING:
    from ecoflap.sweeps.report.metrics import MetricTable

OTHERS = {
    "paired": "ecoflap.sweeps.report.paired",
    "recovery": "ecoflap.sweeps.report.recovery",
    "blip2-table": "ecoflap.sweeps.report.blip2_table",
}
"""{first argument: module of the report}."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in OTHERS:
        code: int = importlib.import_module(OTHERS[arguments[0]]).main(arguments[1:])
        return code
    options = _parser().parse_args(arguments)
    try:
        report(options)
    except BrokenPipeError:  # the files are written
        raise
    except (UserError, OSError) as error:
        from ecoflap.run.refusals import describe  # not for --help: it imports Hydra

        return complain(f"no report: {describe(error) or error}")
    return 0


def report(options: argparse.Namespace) -> None:
    """Write the files, print the table to stdout and their paths to stderr.

    Raises:
        UserError: if there is nothing to show, a record can't be read, or no run has a requested metric.
    """
    # The plotting library takes a second to import.
    from ecoflap.sweeps.report.metrics import make_tables
    from ecoflap.sweeps.report.page import write_page
    from ecoflap.sweeps.report.runs import read_sweeps, read_unfinished
    from ecoflap.sweeps.report.sections import make_sections
    from ecoflap.sweeps.report.table import markdown, write_csv

    folders: list[Path] = options.folders
    names = [folder.resolve().name for folder in folders]
    output = options.output or folders[0] / "_".join(["report", *names[1:]])
    sections = make_sections(read_sweeps(folders))
    unfinished = [run for folder in folders for run in read_unfinished(folder)]
    tables = make_tables(sections, options.metric)

    title = options.title or " and ".join(names)
    page = write_page(output, title, sections, tables, unfinished, ", ".join(map(str, folders)))
    table = options.csv or output / "table.csv"
    write_csv(table, tables)
    if options.wandb is not None:
        track(options.entity, options.project, options.wandb, title, output, tables)
    if tables:
        print("\n".join(markdown(tables)))
    else:
        print("no table: no run was evaluated after pruning", file=sys.stderr)
    for run in unfinished:
        print(f"no result: {run.name} ({' '.join(run.overrides)})", file=sys.stderr)
    print(f"page: {page}\ntable: {table}", file=sys.stderr)


def track(
    entity: str | None, project: str, mode: str, title: str, output: Path, tables: Sequence[MetricTable]
) -> None:
    """Log the report's plots and its rows to a W&B run, and its folder as an artefact of that run.

    Args:
        entity: team or user that the project belongs to; None for that of the W&B account.
        project: W&B project.
        mode: ``offline`` or ``online``.
        title: the report's heading, which names the run and its group.
        output: folder of the page and the plots.
        tables: of the metrics.

    Raises:
        UserError: if W&B is not installed or can't start.
    """
    from ecoflap.sweeps.report.table import CSV_COLUMNS, csv_rows

    with tempfile.TemporaryDirectory() as copy:  # what W&B writes beside the page is not part of it
        shutil.copytree(output, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("wandb"))
        tracker = WandbTracker(
            project, mode, title, f"report of {title}", ["report"], folder=output, entity=entity
        )
        try:
            tracker.log_table("report", CSV_COLUMNS, list(csv_rows(tables)))
            for plot in sorted(Path(copy).glob("*.png")):
                tracker.log_image(f"report/{plot.stem}", plot.read_bytes)
            tracker.log_folder("report", Path(copy))
        finally:
            tracker.close(failed=False)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="ecoflap report", description=__doc__)
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="+",
        type=given_path,
        help="folder of a sweep or a run; every result.json below it is read",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="TASK/METRIC",
        help="show this metric, not each task's first; may be repeated",
    )
    parser.add_argument(
        "--output",
        type=given_path,
        help="folder of the page and the plots (default: report/ inside the first sweep)",
    )
    parser.add_argument(
        "--csv", type=given_path, help="file of the table (default: table.csv in the output folder)"
    )
    parser.add_argument("--title", help="heading of the page (default: the folder's name)")
    parser.add_argument(
        "--wandb", choices=("offline", "online"), help="log the plots and the table to a W&B run as well"
    )
    parser.add_argument("--project", default=WandbOptions.project, help="its project (default: %(default)s)")
    parser.add_argument("--entity", help="team or user of the project (default: that of the W&B account)")
    return parser
