"""Masks and solves of rows that are shared out: those of whole matrices, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ecoflap.blocks.gram import Gram
from ecoflap.ops import Part, Pattern, select, select_part
from ecoflap.prune.admm import ADMM
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests.ops.parts import in_parts

ROWS, COLS = 13, 12


def normal() -> Tensor:
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(0))


def dead_columns_and_protected_weights() -> Tensor:
    scores = normal().abs()
    scores[:, :5] = -1.0
    return scores.masked_fill_(scores > 1, math.inf)


SCORES: dict[str, Callable[[], Tensor]] = {
    "all different": normal,
    "many ties": lambda: (2 * normal()).round(),
    "zeros of both signs": lambda: torch.zeros(ROWS, COLS).copysign(normal()),
    "infinite": lambda: normal().masked_fill_(normal() > 1, math.inf).masked_fill_(normal() < -1, -math.inf),
    "dead columns": dead_columns_and_protected_weights,
    "tiny": lambda: normal() * 1e-44,
    "rows of one value": lambda: normal()[:, :1].round().expand(ROWS, COLS),
    "transposed": lambda: normal().reshape(COLS, ROWS).t(),
}


@pytest.mark.parametrize("count", [2, ROWS])
@pytest.mark.parametrize("pattern", ["row", "matrix", (2, 4)])
@pytest.mark.parametrize("scores", SCORES)
def test_masks_are_those_of_the_whole_matrix(scores: str, pattern: Pattern, count: int) -> None:
    metric = SCORES[scores]()
    for keep in (0, 5, ROWS * COLS // 2, ROWS * COLS // 2 + 5, ROWS * COLS):

        def mask(rows: Sequence[Tensor], parts: Sequence[Part], keep: int = keep) -> Tensor:
            return select_part(rows[0], keep, pattern, parts[0])

        assert torch.equal(torch.cat(in_parts([metric], count, mask)), select(metric, keep, pattern))


@pytest.mark.parametrize("count", [2, ROWS])
@pytest.mark.parametrize("scores", SCORES)
def test_counts_of_rows_are_those_of_the_whole_matrix(scores: str, count: int) -> None:
    metric, keep = SCORES[scores](), torch.arange(ROWS) % (COLS + 1)

    def mask(rows: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
        return select_part(rows[0], keep, "row", parts[0])

    found = torch.cat(in_parts([metric], count, mask))
    assert torch.equal(found, select(metric, keep, "row"))
    assert torch.equal(found.sum(dim=1), keep)


def test_nan_and_impossible_counts_are_refused() -> None:
    metric = normal()
    with pytest.raises(ValueError, match="asked to keep 157 weights"):
        in_parts([metric], 2, lambda rows, parts: select_part(rows[0], 157, "matrix", parts[0]))
    metric[0, 0] = math.nan
    for pattern in ("row", "matrix"):
        with pytest.raises(ValueError, match="are NaN"):
            select_part(metric[:5], 10, pattern, Part(0, ROWS, lambda tensor: tensor))


PRUNERS: dict[str, LayerPruner] = {
    "sparsegpt": SparseGPT(block=16),
    "sparsegpt 2:4": SparseGPT(mask="2:4"),
    "sparsegpt n:4": SparseGPT(mask="n:4"),
    "admm": ADMM(),
    "admm matrix": ADMM(mask="matrix"),
    "admm 2:4": ADMM(mask="2:4"),
    "swaps": Wanda(refine="swaps"),
    "few swaps": Wanda(refine="swaps", swaps=3),
    "repair": Wanda(mask="matrix", repair=True),
    "magnitude, swaps in groups": Magnitude(mask="2:4", refine="swaps"),
}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", PRUNERS)
def test_solves_are_those_of_the_whole_matrices(name: str, count: int) -> None:
    """Of two layers that share an input with a dead column; one has rows of zeros, and one a remainder."""
    torch.manual_seed(0)
    pruner, statistic = PRUNERS[name], Gram(48, torch.device("cpu"))
    inputs = torch.randn(200, 48) @ torch.randn(48, 48)
    inputs[:, 3] = 0
    statistic.update(inputs)
    weights = [torch.randn(40, 48), torch.randn(27, 48)]
    weights[0][8:15] = 0
    keeps = [960, 648] if pruner.rule.group else [961, 500]
    assert pruner.solves_rows
    whole = pruner.together(weights, statistic, keeps)

    def solve(rows: Sequence[Tensor], parts: Sequence[Part]) -> list[tuple[Tensor, Tensor]]:
        return [(one.weight, one.mask) for one in pruner.together(rows, statistic, keeps, parts)]

    found = in_parts(weights, count, solve)
    for layer, expected in enumerate(whole):
        assert int(expected.mask.sum()) == keeps[layer]
        assert torch.equal(torch.cat([one[layer][1] for one in found]), expected.mask)
        torch.testing.assert_close(
            torch.cat([one[layer][0] for one in found]), expected.weight, rtol=1e-5, atol=1e-6
        )
