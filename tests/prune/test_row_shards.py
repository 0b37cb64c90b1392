"""Rows of layers partitioned among processes: all of them, once, to the least busy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from torch import nn

from ecoflap.blocks.drifts import SharedInput
from ecoflap.models.core.layers import Layer
from ecoflap.prune.row_shards import INVERSE, RowShards, partition_rows
from tests.distributed.together import as_process


def layer(name: str, rows: int, cols: int) -> Layer:
    return Layer(name, nn.Linear(cols, rows, bias=False, device="meta"))


def group(*layers: tuple[str, int, int]) -> SharedInput:
    return SharedInput(tuple(layer(*one) for one in layers), None)


def llama(width: int = 4096, wide: int = 11008, values: int = 4096) -> list[SharedInput]:
    """The inputs of one block."""
    return [
        group(("q", width, width), ("k", values, width), ("v", values, width)),
        group(("o", width, width)),
        group(("gate", wide, width), ("up", wide, width)),
        group(("down", width, wide)),
    ]


def mixtral() -> list[SharedInput]:
    """Eight experts, each with an input of its own."""
    wide = [group((f"w1 {expert}", 1024, 256), (f"w3 {expert}", 1024, 256)) for expert in range(8)]
    return [*wide, *(group((f"w2 {expert}", 256, 1024)) for expert in range(8))]


BLOCKS: dict[str, Callable[[], list[SharedInput]]] = {
    "llama": llama,
    "q, k and v": lambda: llama(576, 1536, 192)[:1],
    "down": lambda: llama()[3:],
    "mixtral": mixtral,
    "narrow": lambda: [group(("few", 5, 64), ("many", 64, 64))],
}


def partitioned(groups: Sequence[SharedInput], count: int, solves_rows: bool = True) -> dict[str, RowShards]:
    with as_process(0, count):
        return {layer.name: one for layer, one in partition_rows(groups, solves_rows).items()}


def busy(groups: Sequence[SharedInput], found: Mapping[str, RowShards], count: int) -> list[float]:
    """What each process has to do, by hand."""
    with as_process(0, count):
        total = [0.0] * count
        for process in range(count):
            for one in groups:
                rows = [len(range(layer.shape[0])[found[layer.name].span(process)]) for layer in one.layers]
                cols = one.layers[0].shape[1]
                total[process] += sum(rows) * cols**2 + (INVERSE * cols**3 if sum(rows) else 0)
    return total


@pytest.mark.parametrize("solves_rows", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("block", BLOCKS)
def test_each_row_goes_to_one_process(block: str, count: int, solves_rows: bool) -> None:
    groups = BLOCKS[block]()
    found = partitioned(groups, count, solves_rows)
    with as_process(0, count):
        for one in (layer for group in groups for layer in group.layers):
            spans = [found[one.name].span(process) for process in range(count)]
            rows = [row for span in spans for row in range(span.start, span.stop)]
            assert rows == list(range(one.shape[0]))
            assert solves_rows or not found[one.name].split


def test_rows_are_split_where_that_relieves_the_busiest() -> None:
    for count in (4, 8):
        groups = llama()
        split, whole = (max(busy(groups, partitioned(groups, count, rows), count)) for rows in (True, False))
        inverses = INVERSE * (3 * 4096**3 + 11008**3)
        solves = (4 * 4096 + 2 * 11008) * 4096**2 + 4096 * 11008**2
        assert split <= solves / count + inverses
        assert whole > 1.3 * split


def test_one_input_is_split_evenly() -> None:
    groups = llama(576, 1536, 192)[:1]
    found = partitioned(groups, 4)
    assert [found[name].ends for name in "qkv"] == [(144, 288, 432, 576), *[(48, 96, 144, 192)] * 2]


def test_experts_stay_whole() -> None:
    """Each process inverts the Gram matrices of its own experts alone."""
    groups = mixtral()
    assert not any(one.split for one in partitioned(groups, 4).values())


def test_layers_of_few_rows_stay_whole() -> None:
    found = partitioned([group(("few", 5, 64), ("many", 64, 64))], 4)
    assert found["many"].split
    assert not found["few"].split


def test_the_part_of_a_process() -> None:
    with as_process(2, 4):
        ours, theirs = RowShards.even(10), RowShards.whole(1, 10)
        assert (ours.own, ours.part[:2], ours.mine, ours.owners) == (slice(5, 7), (5, 10), True, [0, 1, 2, 3])
        assert (theirs.own, theirs.mine, theirs.owners) == (slice(10, 10), False, [1])
