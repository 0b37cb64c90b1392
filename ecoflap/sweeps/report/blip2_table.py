"""Table 1 of the paper: each pruned BLIP-2 on VQA, and its towers in captioning and retrieval models.

    ecoflap report blip2-table FOLDER [FOLDER ...]

The folders are those of the sweeps blip2_table1, blip2_table1_nocaps and blip2_table1_flickr30k.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.storage.file_names import RESULT
from ecoflap.storage.markdown import markdown_row
from ecoflap.storage.results.record import Result, find_copies, find_records

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
    """Mean over the five data sets; captioning and retrieval count as the mean of their two columns.

    None if a column is missing.
    """
    if any(column not in row for columns in MEANS for column in columns):
        return None
    return sum(sum(row[column] for column in columns) / len(columns) for columns in MEANS) / len(MEANS)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 2 if there is nothing to show, or a record can't be read.
    """
    parser = ArgumentParser(prog="ecoflap report blip2-table", description=__doc__)
    parser.add_argument(
        "folders",
        type=given_path,
        nargs="+",
        help=f"folders of runs or sweeps; every {RESULT} below them is read",
    )
    folders: list[Path] = parser.parse_args(arguments).folders
    if missing := [folder for folder in folders if not folder.is_dir()]:
        return complain(f"no table: {missing[0]} is not a folder: give the folders of finished sweeps")
    try:
        rows = collect(sorted(path for folder in folders for path in find_records(folder)))
    except ValueError as error:
        return complain(f"no table: {error}")
    if not rows:
        return complain("no table: there is no run of task=blip2_vqa, nocaps or flickr30k below the folders")
    print("\n".join(markdown(rows)))
    return 0


def collect(records: Iterable[Path]) -> dict[str, Row]:
    """Collect the rows of the table by name, the dense model's first.

    Figures of captioning and retrieval models belong to the run whose towers were transferred to them, also
    from a copy of its model.

    Raises:
        ValueError: if a record can't be read.
    """
    results = {path: Result.read(path) for path in records}
    copies = find_copies(results)
    places = {path: (path.parent / (result.checkpoint or "")).resolve() for path, result in results.items()}
    copied = {places[copy]: places[run] for copy, run in copies.items()}
    names: dict[Path, str] = {}
    found: dict[Path | None, Row] = defaultdict(dict)
    for path, result in results.items():
        if not result.of_a_run or path in copies:
            continue
        dense = figures(result.metrics.get("dense", {}))
        if "pruned" in result.metrics:
            checkpoint = places[path]
            names[checkpoint] = _name(result)
            found[checkpoint] |= figures(result.metrics["pruned"])
            found[None] |= dense
        else:
            source = result.config["model"].get("vision_from")
            origin = None if source is None else Path(source).resolve()
            found[None if origin is None else copied.get(origin, origin)] |= dense
    rows = {DENSE: found[None]} if found.get(None) else {}
    for checkpoint_of, row in found.items():
        if row and checkpoint_of is not None:
            rows[_free(names.get(checkpoint_of, str(checkpoint_of)), rows)] = row
    return rows


def figures(metrics: Mapping[str, Mapping[str, float]]) -> Row:
    """The columns that the metrics of some tasks fill."""
    row = {}
    for column, (task, known) in COLUMNS.items():
        value = next((metrics[task][metric] for metric in known if metric in metrics.get(task, {})), None)
        if value is not None:
            row[column] = value
    return row


def markdown(rows: Mapping[str, Row]) -> Iterator[str]:
    """The lines of a GitHub table."""
    yield markdown_row(["method", *COLUMNS, "macro average"])
    yield markdown_row(["---"] + ["---:"] * (len(COLUMNS) + 1))
    for name, row in rows.items():
        values = [*(row.get(column) for column in COLUMNS), macro_average(row)]
        yield markdown_row([name, *("" if value is None else f"{value:.1f}" for value in values)])


def _name(result: Result) -> str:
    config = result.config
    stages = f"{config['pruner']['name']}/{config['score']['name']}"
    return f"{stages}/s{config['sparsity']:g}/seed{config['seed']}"


def _free(name: str, taken: Iterable[str]) -> str:
    """The name, numbered if a row has it already."""
    used = set(taken)
    numbered = (f"{name} ({count})" for count in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in used)
