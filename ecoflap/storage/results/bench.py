"""The record of a bench: what dense and pruned models take, and how fast they are, on one machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ecoflap.storage.file_names import BENCH
from ecoflap.storage.files import read_json, write_json
from ecoflap.storage.results.record import read_result

SCHEMA_VERSION = 1
SPREADS = ("speed", "relative")


@dataclass(frozen=True)
class Spread:
    """A figure over the repeats.

    Attributes:
        median: the median.
        low: the least.
        high: the largest.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class FormRow:
    """One form of a model.

    Attributes:
        name: dense, or the run's folder with the form.
        form: dense, masked, N:M, structured, or what else stores or runs the weights.
        parameters: number of parameters; None if other kernels run the weights, like ``operations``.
        operations: floating-point operations of one repeat at the first batch size, zeros included.
        disk_bytes: bytes of the weights on disk; of the dense model, as it would be saved in the same dtype.
        memory_bytes: bytes of all parameters and buffers in memory.
        load_seconds: median time to load it.
        speed: {batch size: items per second}.
        relative: {batch size: the speed as a multiple of the dense model's in the same round}.
        metric: the value of the headline metric; None if the run did not measure it.
        run: the folder of the run, relative to the first run's, which has the bench.
        record: the digest of the run's record.
    """

    name: str
    form: str
    parameters: int | None
    operations: int | None
    disk_bytes: int
    memory_bytes: int
    load_seconds: float
    speed: dict[str, Spread]
    relative: dict[str, Spread]
    metric: float | None
    run: str
    record: str


@dataclass(frozen=True)
class Bench:
    """Forms of one model, measured side by side in one process.

    Attributes:
        model: the model's name.
        unit: what the speed counts: ``tokens``, ``images`` or ``samples``.
        work: what was timed, in words.
        metric: TASK/METRIC; None if no run measured one.
        machine: device, threads, cores, clock, dtype and version of torch.
        repeats: timed repeats of each form and batch size.
        rows: the forms, the dense model first.
        notes: what could not be measured, and why.
    """

    model: str
    unit: str
    work: str
    metric: str | None
    machine: dict[str, Any]
    repeats: int
    rows: list[FormRow]
    notes: list[str] = field(default_factory=list)

    def write(self, file: Path) -> None:
        """Write the record as JSON."""
        write_json(file, {"schema": SCHEMA_VERSION, **asdict(self)})


def read_bench(folder: Path) -> Bench | None:
    """The bench in a run's folder, without the rows of runs that were run anew since; its notes name these.

    None if there is none that this version reads, or all its runs were run anew.
    """
    values = read_json(folder / BENCH)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA_VERSION:
        return None
    try:
        rows = [
            FormRow(**{**row, **{name: _spreads(row[name]) for name in SPREADS}}) for row in values["rows"]
        ]
        bench = Bench(**{**{one.name: values[one.name] for one in fields(Bench)}, "rows": rows})
    except (KeyError, TypeError, AttributeError):
        return None
    current = [row for row in bench.rows if _is_current(row, folder)]
    left_out = [f"{row.name} was run anew since and is left out" for row in bench.rows if row not in current]
    return replace(bench, rows=current, notes=[*bench.notes, *left_out]) if current else None


def _is_current(row: FormRow, folder: Path) -> bool:
    """Whether a row is of the result that its run has now, as far as the run is still there."""
    run = folder / row.run
    if not run.is_dir():
        return True
    return (result := read_result(run)) is not None and result.digest() == row.record


def _spreads(values: dict[str, Any]) -> dict[str, Spread]:
    return {size: Spread(**one) for size, one in values.items()}


def columns_of(bench: Bench) -> list[str]:
    """The headings of a bench's table."""
    sizes = list(bench.rows[0].speed)
    speeds = [f"{bench.unit}/s at {size}" for size in sizes]
    inner = [heading for speed in speeds for heading in (speed, "x dense")]
    counts = ["parameters", f"operations at {sizes[0]}"]
    return ["model", "form", *counts, "disk MB", "memory MB", "load s", *inner, bench.metric or "metric"]


def cells_of(bench: Bench) -> list[list[str]]:
    """The rows of a bench's table, as they are shown."""
    return [
        [
            row.name,
            row.form,
            *("" if count is None else f"{count:,}" for count in (row.parameters, row.operations)),
            f"{row.disk_bytes / 1e6:.2f}",
            f"{row.memory_bytes / 1e6:.2f}",
            f"{row.load_seconds:.2f}",
            *(
                cell
                for size, speed in row.speed.items()
                for cell in (f"{speed.median:.4g}", _relative(row.relative[size]))
            ),
            "" if row.metric is None else f"{row.metric:.4g}",
        ]
        for row in bench.rows
    ]


def _relative(ratio: Spread) -> str:
    """The median with the range over the rounds."""
    return f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def machine_line(bench: Bench) -> str:
    """The machine and the way of measuring, in a line."""
    known = bench.machine
    return (
        f"{known['device']}, {known['threads']} of {known['cores']} threads, {known['dtype']},"
        f" torch {known['torch']}; {known['clock']}, median (range) of {bench.repeats} rounds in which the"
        " forms take turns"
    )
