"""Rows of one run in several processes of one thread each: CPU seconds of the busiest, and bytes sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from benchmarks.measure import Row, in_children
from benchmarks.models import llama, smollm2, tokens
from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.drifts import SharedInput
from ecoflap.distributed.processes import joined
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.row_shards import partition_rows
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.score.first_order import FirstOrder

COUNTS = (1, 2, 4)
PRUNERS: Mapping[str, tuple[LayerPruner, str]] = {
    "wanda": (Wanda(), "pruned"),
    "sparsegpt": (SparseGPT(), "layer"),
    "admm": (ADMM(), "layer"),
}
INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
SIZES = {"smollm2": (16, 256, 49152), "llama": (6, 16, 256)}


def measure(method: str, model: str) -> dict[str, Any]:
    """CPU seconds of this process, the bytes that it gave to collective operations, and those expected."""
    torch.set_num_threads(1)
    built = smollm2() if model == "smollm2" else llama(32, 3)
    samples, length, vocabulary = SIZES[model]
    calibration = tokens(samples, length, vocabulary)
    allocation = WaterFilling()(built, None, 0.5)

    def work() -> None:
        if method == "first order":
            FirstOrder(samples=samples, batch_size=2)(built, calibration, 0)
        else:
            pruner, propagate = PRUNERS[method]
            prune(built, calibration, pruner, allocation, 4, propagate=propagate)

    with joined("cpu"):
        started = time.process_time()
        sent = _counting(work)
        seconds = time.process_time() - started
        arithmetic = expected(method, built, allocation)
    return {"seconds": seconds, "sent": sent, "expected": arithmetic}


def _counting(work: Callable[[], None]) -> int:
    """The bytes of the tensors that some work sums or broadcasts, whatever a backend makes of them."""
    sent = 0
    operations = {name: getattr(distributed, name) for name in ("all_reduce", "broadcast")}

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
            nonlocal sent
            sent += tensor.nbytes
            return operation(tensor, *arguments, **keywords)

        return run

    for name, operation in operations.items():
        setattr(distributed, name, counted(operation))
    try:
        work()
    finally:
        for name, operation in operations.items():
            setattr(distributed, name, operation)
    return sent


def expected(method: str, model: PrunableModel, allocation: Allocation) -> int:
    """By arithmetic: sums in fp64 of each input's squares or products, with a count of tokens; weights and
    masks of what is partitioned, and what competes across the rows of layers that are shared.
    """
    if method == "first order":
        return 0
    total = 0
    for block in (block for tower in model.towers for block in tower.blocks):
        groups = [
            SharedInput(tuple(one for one in block.layers if one.name.split(".")[-2] in names), None)
            for names in INPUTS
        ]
        for group in groups:
            cols = group.layers[0].shape[1]
            total += 8 + 8 * (cols if method == "wanda" else upper_half(cols))
        if method == "wanda":
            continue
        pruner, propagate = PRUNERS[method]
        for together in [groups] if propagate == "pruned" else [[group] for group in groups]:
            for layer, shards in partition_rows(together, pruner.solves_rows).items():
                total += 5 * layer.size + shards.split * _competing(method, layer, allocation)
    return total


def upper_half(cols: int) -> int:
    """Numbers in the upper half of a Gram matrix, in strips of 256 rows from the diagonal on."""
    strips, rest = divmod(cols, 256)
    return 256 * sum(cols - 256 * strip for strip in range(strips)) + rest**2


def _competing(method: str, layer: Layer, allocation: Allocation) -> int:
    """Bytes of the scores that compete across the rows of a layer: all of SparseGPT's, block of columns by
    block of columns; of a mask by rows, the best pruned one of each row where the count leaves a remainder.
    """
    rows = layer.shape[0]
    return 4 * layer.size if method == "sparsegpt" else 4 * rows * (allocation.keep[layer.name] % rows > 0)


def rows(runs: int, model: str = "smollm2") -> Iterator[Row]:
    """Each method in each number of processes; one run, as the figures are of the CPU."""
    for method in (*PRUNERS, "first order"):
        alone = 0.0
        for count in COUNTS:
            found = in_children(count, "benchmarks.processes:measure", method=method, model=model)
            busiest = max(one["seconds"] for one in found)
            alone = busiest if count == 1 else alone
            sent, arithmetic = max(one["sent"] for one in found), found[0]["expected"]
            samples, length, _ = SIZES[model]
            yield Row(
                f"{method}, {model}, {samples} x {length}, {count} process{'es' * (count > 1)}",
                "one process",
                "s",
                alone,
                busiest,
                alone / busiest,
                None,
                f"{sent / 2**20:.1f} MiB sent, {arithmetic / 2**20:.1f} by arithmetic" if count > 1 else "-",
                {"processes": found},
            )
