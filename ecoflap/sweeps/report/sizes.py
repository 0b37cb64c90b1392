"""What a model takes on disk: dense, and as a bitmask checkpoint, and what a run saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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
        bitmask: a bit per prunable weight and the weights that are not zero.
        saved: the files of a run's checkpoint; None if no run saved one.
    """

    methods: tuple[str, ...]
    sparsity: float
    dense: float
    bitmask: float
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
    return (run for run in runs if run.realised is not None and run.result.sparsity.get("layers"))


def _size(method: Method, sparsity: float, runs: list[Run]) -> Size | None:
    run = next(_masked(runs))
    width = BYTES.get(run.result.model["dtype"])
    if width is None:
        return None
    layers = run.result.sparsity["layers"].values()
    weights, zeros = (sum(layer[key] for layer in layers) for key in ("size", "zeros"))
    dense = width * run.result.model["parameters"]
    bitmask = dense - width * zeros + weights / 8
    saved = max((size for one in runs if (size := _on_disk(one)) is not None), default=None)
    return Size((method.label,), sparsity, dense / 1e6, bitmask / 1e6, None if saved is None else saved / 1e6)


def _on_disk(run: Run) -> int | None:
    """Bytes of a run's checkpoint; None if it has none."""
    folder = run.folder / (run.result.checkpoint or "")
    if run.result.checkpoint is None or not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
