"""What a model takes on disk: dense, and as a bitmask checkpoint, and what a run saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ecoflap.storage.bitmask.encoding import encoded_bytes
from ecoflap.storage.bitmask.forms import BITMASK
from ecoflap.storage.bitmask.groups import GROUP
from ecoflap.storage.saved_model import weight_bytes
from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.runs import Run
from ecoflap.sweeps.report.sections import Section

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a weight."""


class Size(NamedTuple):
    """The sizes of a model at one sparsity, in MB (10^6 bytes).

    Attributes:
        methods: the names of the methods whose model takes as much.
        sparsity: the target.
        dense: all weights, zeros or not: the dense model, and the pruned one as ``from_pretrained`` loads it.
        bitmask: the weight files of a bitmask checkpoint.
        measured: whether a run saved one; else it is what the values and their places take, without headers
            and index.
        saved: the files of a run's checkpoint; None if no run saved one.
    """

    methods: tuple[str, ...]
    sparsity: float
    dense: float
    bitmask: float
    measured: bool
    saved: float | None


def sizes_of(section: Section) -> list[Size]:
    """The sizes by sparsity; without structured pruning, which keeps no zeros, and unknown dtypes."""
    sizes = [
        size
        for method, runs in section.by_method.items()
        for sparsity in sorted({run.sparsity for run in _masked(runs)})
        if (size := _size(method, sparsity, [run for run in runs if run.sparsity == sparsity])) is not None
    ]
    alike: dict[tuple[Any, ...], list[str]] = {}
    for size in sorted(sizes, key=lambda size: size.sparsity):
        alike.setdefault(tuple(size[1:]), []).extend(size.methods)
    return [Size(tuple(methods), *figures) for figures, methods in alike.items()]


def _masked(runs: list[Run]) -> Iterator[Run]:
    return (run for run in runs if not run.result.is_structured and run.result.sparsity.get("layers"))


def _size(method: Method, sparsity: float, runs: list[Run]) -> Size | None:
    run = next(_masked(runs))
    width = BYTES.get(run.result.model["dtype"])
    if width is None:
        return None
    layers = run.result.sparsity["layers"].values()
    dense = width * run.result.model["parameters"]
    grouped = (run.result.pattern or "").endswith(f":{GROUP}")
    computed = dense + sum(_encoded(layer, width, grouped) - width * layer["size"] for layer in layers)
    saved = max((size for one in runs if (size := _on_disk(one)) is not None), default=None)
    measured = max((size for one in runs if (size := _as_bitmask(one)) is not None), default=None)
    return Size(
        (method.label,),
        sparsity,
        dense / 1e6,
        (computed if measured is None else measured) / 1e6,
        measured is not None,
        None if saved is None else saved / 1e6,
    )


def _encoded(layer: Mapping[str, Any], width: int, grouped: bool) -> int:
    """Bytes of a layer's values and their places in the smallest encoding of a bitmask checkpoint.

    Args:
        layer: its counts.
        width: bytes of a weight.
        grouped: whether the zeros lie in a pattern N:4.
    """
    size, values = layer["size"], layer["size"] - layer["zeros"]
    n = -(-GROUP * values // size) if grouped else 0
    return min(encoded_bytes(size, values, width, n).values())


def _on_disk(run: Run) -> int | None:
    """Bytes of a run's checkpoint; None if it has none."""
    folder = _checkpoint(run)
    if folder is None:
        return None
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _as_bitmask(run: Run) -> int | None:
    """Bytes of the weight files of a run's bitmask checkpoint; None if it has none."""
    folder = _checkpoint(run)
    if folder is None or run.config["model"].get("save") != BITMASK:
        return None
    return weight_bytes(folder)


def _checkpoint(run: Run) -> Path | None:
    """The folder of a run's checkpoint; None if it has none."""
    folder = run.folder / (run.result.checkpoint or "")
    return folder if run.result.checkpoint is not None and folder.is_dir() else None
