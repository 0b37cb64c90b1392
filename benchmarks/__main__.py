"""Measure: python -m benchmarks [--only kernels coarse ...] [--runs 3]. Writes docs/benchmarks.json and the
table in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import coarse, fine, growth, kernels, offload, processes, structured
from benchmarks.measure import ROOT, Row, write_between
from benchmarks.models import device
from ecoflap.console.startup import reuse_freed_memory
from ecoflap.errors import UserError
from ecoflap.storage.results.hardware import name_of

GROUPS = {
    "kernels": kernels,
    "coarse": coarse,
    "fine": fine,
    "offload": offload,
    "processes": processes,
    "structured": structured,
    "growth": growth,
}
BEGIN, END = "<!-- written by python -m benchmarks -->", "<!-- end -->"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=sorted(GROUPS),
        default=list(GROUPS),
        help="which rows; the others stay as they were measured",
    )
    parser.add_argument("--runs", type=int, default=3, help="runs per side, of which the median counts")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of PyTorch; one gives figures that other work on the machine disturbs least",
    )
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs", help="where benchmarks.json and benchmarks.md are"
    )
    options = parser.parse_args(arguments)
    reuse_freed_memory()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the child processes
    record = options.docs / "benchmarks.json"
    groups: dict[str, Any] = json.loads(record.read_text())["groups"] if record.is_file() else {}
    for group in options.only:
        rows: list[dict[str, Any]] = []
        try:
            for row in GROUPS[group].rows(options.runs):
                print(line(asdict(row)), flush=True)
                rows.append({**asdict(row), "met": row.met})
                groups[group] = {"machine": machine(options.threads), "rows": rows}
                write(options.docs, groups)
        except UserError as error:
            print(f"{group}: not measured: {error}", flush=True)


def write(folder: Path, groups: dict[str, Any]) -> None:
    """Record what is known so far."""
    (folder / "benchmarks.json").write_text(json.dumps({"groups": groups}, indent=1) + "\n")
    write_table(folder / "benchmarks.md", groups)


def machine(threads: int) -> dict[str, str]:
    """What the figures depend on."""
    where = device()
    counted = f", {threads} thread(s), CPU seconds of the process" if where.type == "cpu" else ""
    return {
        "device": name_of(where) + counted,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    sign, value = row["target"] or ("", None)
    target = "" if value is None else f"{'≥' if sign == '>=' else '≤'} {value:g}"
    met = {None: "", True: "yes", False: "**no**"}[Row(**{key: row[key] for key in row if key != "met"}).met]
    cells = [
        row["name"],
        row["against"],
        f"{row['plain']:.4g}",
        f"{row['ours']:.4g} {row['unit']}",
        f"{row['ratio']:.3g}",
        target,
        met,
        row["agreement"],
    ]
    return f"| {' | '.join(cells)} |"


def write_table(path: Path, groups: dict[str, Any]) -> None:
    """Put the table between the two marks; what people wrote around it stays."""
    lines = [
        "| row | against | theirs | ours | ratio | target | met | agreement |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for group in GROUPS:
        lines += [line(row) for row in groups.get(group, {}).get("rows", [])]
    machines = sorted(
        {", ".join(f"{key} {value}" for key, value in groups[group]["machine"].items()) for group in groups}
    )
    if not path.is_file():
        path.write_text(f"# Benchmarks\n\n{BEGIN}\n{END}\n", encoding="utf-8")
    write_between(path, BEGIN, END, [*machines, "", *lines])


if __name__ == "__main__":
    main()
