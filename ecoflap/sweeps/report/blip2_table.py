"""Table 1 of the paper: each pruned BLIP-2 on questions, and what its towers do in the models that write and
find captions.

    cd outputs/sweeps && ecoflap report blip2-table blip2_table1 blip2_table1_nocaps blip2_table1_flickr30k
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ecoflap.console.progress import ArgumentParser, complain
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.results.record import Result

# A column is a task and the first of these metrics that it has.
COLUMNS = {
    "VQAv2": ("vqav2", ("accuracy",)),
    "OK-VQA": ("okvqa", ("accuracy",)),
    "GQA": ("gqa", ("accuracy",)),
    "CIDEr": ("nocaps", ("cider",)),
    "SPICE": ("nocaps", ("spice",)),
    "TR@1": ("flickr30k", ("text_recall_1_match", "text_recall_1")),
    "IR@1": ("flickr30k", ("image_recall_1_match", "image_recall_1")),
}
MEANS = (("VQAv2",), ("OK-VQA",), ("GQA",), ("CIDEr", "SPICE"), ("TR@1", "IR@1"))
DENSE = "dense"

Row = dict[str, float]
"""Column -> figure."""


def macro_average(row: Mapping[str, float]) -> float | None:
    """Mean over the five data sets, of which captions and retrieval are means of their two columns; null
    where one was not measured.
    """
    if any(column not in row for columns in MEANS for column in columns):
        return None
    return sum(sum(row[column] for column in columns) / len(columns) for columns in MEANS) / len(MEANS)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 when there is nothing to show or a record cannot be
    read.
    """
    parser = ArgumentParser(
        prog="ecoflap report blip2-table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", help=f"folders of runs or sweeps; every {RESULT} below them is read"
    )
    try:
        rows = collect(
            sorted(path for folder in parser.parse_args(arguments).folders for path in folder.rglob(RESULT))
        )
    except ValueError as error:
        return complain(f"no table: {error}")
    if not rows:
        return complain("no table: there is no run of task=blip2_vqa, nocaps or flickr30k below the folders")
    print("\n".join(markdown(rows)))
    return 0


def collect(records: Iterable[Path]) -> dict[str, Row]:
    """{name: row}, the dense model's first. What was measured in another model belongs to the run whose
    towers that took over.

    Raises:
        ValueError: a record cannot be read.
    """
    names: dict[Path, str] = {}
    found: dict[Path | None, Row] = defaultdict(dict)
    for path in records:
        result = Result.read(path)
        if "pruned" in result.metrics:
            checkpoint = (path.parent / (result.checkpoint or "")).resolve()
            names[checkpoint] = _name(result)
            found[checkpoint] |= figures(result.metrics["pruned"])
            found[None] |= figures(result.metrics.get("dense", {}))
        else:
            folder = result.config["model"].get("vision_from")
            found[None if folder is None else Path(folder).resolve()] |= figures(
                result.metrics.get("dense", {})
            )
    rows = {DENSE: found[None]} if found.get(None) else {}
    for taken, row in found.items():
        if row and taken is not None:
            rows[_free(names.get(taken, str(taken)), rows)] = row
    return rows


def figures(metrics: Mapping[str, Mapping[str, float]]) -> Row:
    """The columns that some tasks' metrics fill."""
    row = {}
    for column, (task, known) in COLUMNS.items():
        value = next((metrics[task][metric] for metric in known if metric in metrics.get(task, {})), None)
        if value is not None:
            row[column] = value
    return row


def markdown(rows: Mapping[str, Row]) -> Iterator[str]:
    """The lines of a GitHub table."""
    yield f"| method | {' | '.join(COLUMNS)} | macro average |"
    yield f"| --- |{' ---: |' * (len(COLUMNS) + 1)}"
    for name, row in rows.items():
        values = [*(row.get(column) for column in COLUMNS), macro_average(row)]
        yield f"| {name} | {' | '.join('' if value is None else f'{value:.1f}' for value in values)} |"


def _name(result: Result) -> str:
    config = result.config
    return (
        f"{config['pruner']['name']}/{config['score']['name']}/s{config['sparsity']:g}/seed{config['seed']}"
    )


def _free(name: str, taken: Iterable[str]) -> str:
    """The name, numbered where a row has it already."""
    used = set(taken)
    return next(
        one
        for count in range(1, len(used) + 2)
        if (one := name if count == 1 else f"{name} ({count})") not in used
    )
