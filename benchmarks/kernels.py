"""Rows of single matrices: the solves of SparseGPT and ADMM, Wanda's selection, n:m masks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.measure import Row, interleaved, medians, operations
from benchmarks.models import device
from ecoflap.ops import (
    InverseFactor,
    Solution,
    admm_solve,
    inverse_factor,
    normalised_inverse,
    select_in_rows,
    select_n_of_m,
    sparsegpt_solve,
)
from ecoflap.prune.options import ADMMOptions

LAYERS = ((576, 576), (1536, 576), (576, 1536))  # of SmolLM2, [rows, cols]


def problem(rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """A weight [rows, cols] and the damped Hessian [cols, cols] of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * cols, cols, generator=generator) + torch.randn(2 * cols, 1, generator=generator)
    hessian = inputs.T @ inputs / len(inputs)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    return torch.randn(rows, cols, generator=generator).to(device()), hessian.to(device())


def loss(weight: Tensor, pruned: Tensor, hessian: Tensor) -> float:
    change = (pruned - weight).double()
    return float((change @ hessian.double() * change).sum())


def solve(size: int, runs: int) -> Row:
    """The solve at 50 %, both sides given the same factor; the factors are compared beside it."""
    weight, hessian = problem(size, size)
    upper, keep = plain.inverse_factor(hessian), weight.numel() // 2
    factor = InverseFactor(upper, torch.zeros(size, dtype=torch.bool, device=upper.device), 0.0)

    def ours() -> Solution:
        return sparsegpt_solve([weight], factor, [keep], "matrix")[0]

    seconds = medians(
        interleaved(
            {
                "plain": lambda: plain.column_loop(weight, upper, keep),
                "ours": ours,
                "plain factor": lambda: plain.inverse_factor(hessian),
                "our factor": lambda: inverse_factor(hessian, 0.0),
            },
            runs,
        )
    )
    (by_columns, mask), pruned = plain.column_loop(weight, upper, keep), ours()
    change = loss(weight, pruned.weight, hessian) / loss(weight, by_columns, hessian) - 1
    agreement = f"loss {100 * change:+.4f} %, {float((mask == pruned.mask).double().mean()):.4%} of the mask"
    details = {
        **seconds,
        "plain operations": operations(lambda: plain.column_loop(weight, upper, keep)),
        "our operations": operations(ours),
        "with factor": (seconds["plain"] + seconds["plain factor"])
        / (seconds["ours"] + seconds["our factor"]),
    }
    against = "column by column, given the factor"
    ratio = seconds["plain"] / seconds["ours"]
    return Row(
        f"SparseGPT solve, {size}²",
        against,
        "s",
        seconds["plain"],
        seconds["ours"],
        ratio,
        (">=", 3.0),
        agreement,
        details,
    )


def admm(rows: int, cols: int, runs: int) -> Row:
    """ADMM at 50 % against SparseGPT as published, each from the Hessian on."""
    weight, hessian = problem(rows, cols)
    keep, options = weight.numel() // 2, ADMMOptions()

    def ours() -> Solution:
        inverse = normalised_inverse(hessian, options.damping, options.penalty)
        steps = options.iterations, options.schedule, options.relaxation
        return admm_solve([weight], inverse, [keep], ["matrix"], *steps)[0]

    sides = {"plain": lambda: plain.sparsegpt_by_columns(weight, hessian, keep), "ours": ours}
    seconds = medians(interleaved(sides, runs))
    by_columns, _ = plain.sparsegpt_by_columns(weight, hessian, keep)
    change = loss(weight, ours().weight, hessian) / loss(weight, by_columns, hessian) - 1
    return Row(
        f"ADMM solve, {rows} x {cols}",
        "SparseGPT column by column, with its factor",
        "s",
        seconds["plain"],
        seconds["ours"],
        seconds["plain"] / seconds["ours"],
        None,
        f"loss {100 * change:+.1f} %",
        seconds,
    )


def distinct(size: int) -> Tensor:
    """A metric [size, size] without ties, whose order a plain top-k leaves open."""
    return torch.randperm(size * size, generator=torch.Generator().manual_seed(0)).float().view(size, size)


def selection(size: int, runs: int) -> Row:
    """Wanda's row masks at 50 %."""
    metric = distinct(size).to(device())
    sides = {
        "plain": lambda: plain.sorted_rows(metric, size // 2),
        "ours": lambda: select_in_rows(metric, metric.numel() // 2),
    }
    seconds = medians(interleaved(sides, runs))
    agreement = (
        "same mask"
        if torch.equal(plain.sorted_rows(metric, size // 2), select_in_rows(metric, metric.numel() // 2))
        else "MASKS DIFFER"
    )
    ratio = seconds["plain"] / seconds["ours"]
    return Row(
        f"Wanda selection, {size}²",
        "stable sort and scatter",
        "s",
        seconds["plain"],
        seconds["ours"],
        ratio,
        (">=", 4.0),
        agreement,
        seconds,
    )


def n_of_m(size: int, n: int, m: int, runs: int) -> Row:
    """The number of operations of an n:m mask; the seconds are in the details."""
    metric = distinct(size).to(device())
    sides = {
        "plain": lambda: plain.n_of_m_by_columns(metric, n, m),
        "ours": lambda: select_n_of_m(metric, n, m),
    }
    counts = {name: operations(side) for name, side in sides.items()}
    seconds = medians(interleaved(sides, runs))
    agreement = "same mask" if torch.equal(sides["plain"](), sides["ours"]()) else "MASKS DIFFER"
    ratio = counts["plain"] / counts["ours"]
    name = f"{n}:{m} selection, {size}²"
    return Row(
        name,
        "group by group of columns",
        "operations",
        counts["plain"],
        counts["ours"],
        ratio,
        (">=", 10.0),
        agreement,
        seconds,
    )


def rows(runs: int) -> Iterator[Row]:
    for size in (1024, 2048, 4096):
        yield solve(size, runs)
    for shape in LAYERS:
        yield admm(*shape, runs)
    yield selection(4096, runs)
    for n, m in ((2, 4), (4, 8)):
        yield n_of_m(4096, n, m, runs)
