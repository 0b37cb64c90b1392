"""The runs below a folder: those with a result, and those without."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

from ecoflap.errors import UserError
from ecoflap.storage.file_names import ALLOCATION, HYDRA, JOBS, RESULT
from ecoflap.storage.results.hardware import in_words
from ecoflap.storage.results.identity import rounded_sparsity
from ecoflap.storage.results.record import Result, find_copies, find_records
from ecoflap.sweeps.submitted import submitted_jobs

OVERRIDES = Path(HYDRA) / "overrides.yaml"
NEEDED = ("model.name", "pruner.name", "score.name", "sparsity", "seed")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: its folder, relative to the folder of the report.
        folder: its folder.
        result: its record.
    """

    name: str
    folder: Path
    result: Result

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config."""
        return self.result.config

    @property
    def sparsity(self) -> float:
        """The target sparsity."""
        return float(self.config["sparsity"])

    @property
    def finetuner(self) -> str | None:
        """The name of what fine-tuned the model before its last evaluation; None if nothing did."""
        return str(self.config["finetune"]["name"]) if self.result.state == "finetuned" else None

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """{task: {metric: figure}} of the model in its last state; empty if it was not evaluated."""
        return self.result.metrics.get(self.result.state, {})

    @property
    def realised(self) -> float | None:
        """The share of the prunable weights that are gone; None of whole units that no file tells of.

        Whole units leave no zeros: the counts of the dense model's layers are in the allocation file alone.
        """
        if not self.result.is_structured:
            return float(self.result.sparsity["prunable"])
        counts: Any = self.allocation
        sizes = sum(counts["sizes"].values()) if counts else 0
        return 1 - sum(counts["keep"].values()) / sizes if sizes else None

    @property
    def allocation(self) -> dict[str, Any]:
        """What its allocation file holds, such as ``keep`` and ``sizes``; empty if it has none."""
        file = self.folder / ALLOCATION
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    @property
    def samples(self) -> str | None:
        """The fingerprint of the calibration samples that it used; None if it used none."""
        calibration = self.result.data.get("calibration", {})
        return None if calibration.get("unused") else calibration.get("fingerprint")

    @property
    def seed(self) -> int:
        """The seed of every random draw."""
        return int(self.config["seed"])


@dataclass(frozen=True)
class Unfinished:
    """A run without a result: it failed, was stopped, or is still running.

    Attributes:
        name: its folder, relative to the folder of the report.
        overrides: its overrides.
    """

    name: str
    overrides: list[str]


COARSE_STEPS = ("score", "allocate")
"""The steps that decide allocations."""
SWEEP = "sweep"
"""The config key under which runs of compared sweeps keep their sweep's name."""


def read_sweeps(folders: Sequence[Path]) -> list[Run]:
    """The runs of several sweeps, each with its sweep's name in its own and in its config.

    Raises:
        UserError: as for ``read_runs``, or if a folder is given twice.
    """
    if len(folders) == 1:
        return read_runs(folders[0])
    names = short_paths(str(folder.resolve()) for folder in folders)
    if len(names) < len(folders):
        raise UserError(
            f"{' '.join(map(str, folders))}: a sweep can't be compared with itself; give two folders"
        )
    return [
        Run(f"{name}/{run.name}", run.folder, replace(run.result, config={**run.config, SWEEP: name}))
        for folder, name in zip(folders, names.values(), strict=True)
        for run in read_runs(folder)
    ]


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """Paths without the folders that they share at the start and at the end."""
    parts = {path: list(PurePath(path).parts) or [path] for path in paths}
    lists = list(parts.values())
    while all(len(one) > 1 for one in lists) and len({one[0] for one in lists}) == 1:
        lists = [one[1:] for one in lists]
    while all(len(one) > 1 for one in lists) and len({one[-1] for one in lists}) == 1:
        lists = [one[:-1] for one in lists]
    return {path: "/".join(one) for path, one in zip(parts, lists, strict=True)}


def read_runs(folder: Path) -> list[Run]:
    """Every run below a folder, oldest first.

    Left out, and named on stderr, are records of ``ecoflap.save``, and those beside a copy of a run's model,
    such as one that was converted, if the run is there too.

    Raises:
        UserError: if there is no result record of a run below the folder, one can't be read, or one lacks
            what a report needs.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder of a finished run or sweep")
    paths = find_records(folder)
    if not paths:
        without = len(read_unfinished(folder))
        found = f"; {without} runs there left no result" if without else ""
        raise UserError(f"no {RESULT} below {folder}{found}: give the folder of a finished run or sweep")
    read = {path: _result(path) for path in paths}
    results = dict(sorted(read.items(), key=lambda item: (_finished(*item), item[0])))
    from_python = [path for path, result in results.items() if not result.of_a_run]
    if len(from_python) == len(paths):
        raise UserError(
            f"no run below {folder}: ecoflap.save wrote {from_python[0]}, and a report shows runs"
        )
    for path in from_python:
        print(f"left out: {path} is of ecoflap.save, and a report shows runs", file=sys.stderr)
    copies = find_copies(results)
    for path in sorted(copies):
        print(f"left out: {path} is beside a copy of the model of {copies[path].parent}", file=sys.stderr)
    left_out = {*from_python, *copies}
    return [_run(path, folder, result) for path, result in results.items() if path not in left_out]


def hardware_of(runs: Iterable[Run]) -> Counter[str]:
    """The number of runs on each hardware, of those whose record names it."""
    return Counter(words for run in runs if (words := in_words(run.result.hardware)))


def read_unfinished(folder: Path) -> list[Unfinished]:
    """The runs in or below a folder that have no result: Hydra started them, or a sweep lists them."""
    from omegaconf import OmegaConf

    overrides = {
        listing.parent / str(job["number"]): job["overrides"]
        for listing in folder.rglob(JOBS)
        for job in submitted_jobs(listing.parent)
        if job["number"] >= 0
    }
    overrides |= {path.parents[1]: OmegaConf.load(path) for path in folder.rglob(str(OVERRIDES))}
    return [
        Unfinished(_name(run, folder), list(map(str, overrides[run])))
        for run in sorted(overrides, key=lambda run: (len(run.name), run))
        if not (run / RESULT).is_file()
    ]


def _finished(path: Path, result: Result) -> str:
    """When a run finished; of an older record, when its file was written."""
    if result.finished is not None:
        return result.finished
    written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    return written.isoformat(timespec="milliseconds")


def _result(path: Path) -> Result:
    """A record.

    Raises:
        UserError: if it can't be read.
    """
    try:
        return Result.read(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def _run(path: Path, folder: Path, result: Result) -> Run:
    """The run that wrote a record.

    Raises:
        UserError: if its config lacks what a report needs.
    """
    for group in ("model", "pruner", "score"):  # a user's part without a name goes by that of its class
        part = result.config.get(group)
        if isinstance(part, dict) and "_target_" in part:
            part.setdefault("name", str(part["_target_"]).rpartition(".")[2])
    for key in NEEDED:
        value: Any = result.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is None:
            raise UserError(
                f"{path} lacks {key} in its config, which a report needs; run the configuration again or move"
                " the folder away"
            )
    result.config["sparsity"] = rounded_sparsity(result.config["sparsity"])  # as given in a call from Python
    return Run(_name(path.parent, folder), path.parent, result)


def _name(run: Path, folder: Path) -> str:
    return folder.resolve().name if run == folder else run.relative_to(folder).as_posix()
