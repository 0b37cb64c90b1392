"""How cost grows with width, depth, tokens and samples, against the law that the algorithm has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from benchmarks.measure import Row, clock
from benchmarks.models import Dense, llama, tokens
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.prune.driver import prune
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder

BASE = {"width": 256, "depth": 4, "tokens": 128, "samples": 16}
SCALES: dict[str, Sequence[int]] = {
    "width": (256, 512, 1024),
    "depth": (4, 8, 16),
    "tokens": (128, 256, 512),
    "samples": (16, 32, 64),
}
# Exponents where the named term rules. Zeroth order probes every layer (depth) and runs all blocks behind it
# (depth again). Attention adds tokens².
LAWS: dict[str, dict[str, float]] = {
    "wanda": {"width": 2, "depth": 1, "tokens": 1, "samples": 1},
    "sparsegpt": {"width": 2, "depth": 1, "tokens": 1, "samples": 1},
    "first order": {"width": 2, "depth": 1, "tokens": 1, "samples": 1},
    "zeroth order": {"width": 2, "depth": 2, "tokens": 1, "samples": 1},
}


def seconds(method: str, width: int, depth: int, tokens_: int, samples: int) -> float:
    """One run of a method at one size; the faster of two, because the first also warms up."""
    model, calibration = llama(width, depth), tokens(samples, tokens_, 256)
    dense = Dense(model)
    work: dict[str, Callable[[], object]] = {
        "wanda": lambda: prune(model, calibration, Wanda(), WaterFilling()(model, None, 0.5), 4),
        "sparsegpt": lambda: prune(model, calibration, SparseGPT(), WaterFilling()(model, None, 0.5), 4),
        "first order": lambda: FirstOrder(samples=samples)(model, calibration, 0),
        "zeroth order": lambda: ZerothOrder(samples=samples)(model, calibration, 0),
    }
    times = []
    for _ in range(2):
        dense.restore(model)
        started = clock()
        work[method]()
        times.append(clock() - started)
    return min(times)


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The slope of log time over log size, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(time) for time in times]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )


def growth(method: str, along: str, sizes: Sequence[int], base: dict[str, int]) -> Row:
    """The fitted exponent of one method along one size."""
    times = []
    for size in sizes:
        at = {**base, along: size}
        times.append(seconds(method, at["width"], at["depth"], at["tokens"], at["samples"]))
    fitted, law = exponent(sizes, times), LAWS[method][along]
    details = {"sizes": list(sizes), "seconds": times}
    return Row(
        f"{method}, growth with {along}",
        "the law's exponent",
        "exponent",
        law,
        fitted,
        fitted / law,
        None,
        "-",
        details,
    )


def rows(runs: int) -> Iterator[Row]:
    del runs
    for method in LAWS:
        for along, sizes in SCALES.items():
            zeroth = method == "zeroth order"
            base = {"width": 128, "depth": 2, "tokens": 64, "samples": 8} if zeroth else BASE
            yield growth(method, along, [size // 2 for size in sizes] if zeroth else sizes, base)
