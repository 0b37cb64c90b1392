"""Shares of work, and what processes make of them together."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ecoflap.data.batch import samples_in
from ecoflap.distributed.collectives import (
    assign,
    from_first,
    gathered,
    share,
    share_of_samples,
    summed,
    tensor_from,
)
from ecoflap.distributed.processes import is_first, joined, rank, size
from ecoflap.errors import UserError

from .together import ChildError, as_process, together

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool)


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_all_items_in_order(count: int, processes: int) -> None:
    shares = []
    for number in range(processes):
        with as_process(number, processes):
            shares.append(share(list(range(count))))
    assert [item for one in shares for item in one] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 6))
@example([1, 1, 3, 3, 3], 2)
@example([1, 7, 1, 1, 7, 7], 3)
def test_shares_of_samples_are_all_samples_in_order(lengths: list[int], processes: int) -> None:
    total = sum(lengths)
    batches = [
        {"input_ids": part, "labels": -part} for part in torch.arange(total).reshape(-1, 1).split(lengths)
    ]
    found, counts, parts = [], [], []
    for number in range(processes):
        with as_process(number, processes):
            if total < processes:
                with pytest.raises(UserError, match=f"{processes} processes share {total} calibration"):
                    share_of_samples(batches)
                return
            own = share_of_samples(batches)
        counts.append(sum(map(samples_in, own)))
        parts += map(samples_in, own)
        found += [sample for batch in own for sample in batch["input_ids"].flatten().tolist()]
        assert all(torch.equal(batch["labels"], -batch["input_ids"]) for batch in own)
    assert found == list(range(total))
    assert len(lengths) < processes or parts == lengths, "no batch is cut that need not be"
    assert max(counts) - min(counts) <= (1 if len(lengths) < processes else 2 * max(lengths))


def test_the_largest_pieces_are_dealt_first() -> None:
    with as_process(0, 2):
        assert assign([1, 5, 2, 2]) == [1, 0, 1, 1]
        assert assign([]) == []
    assert assign([3, 1]) == [0, 0]


@pytest.mark.parametrize("count", [2, 3])
def test_all_have_the_same(count: int) -> None:
    def work() -> list[object]:
        own = float(rank() + 1)
        several = torch.full((2, 3), own).t()  # not contiguous
        chosen = [tensor_from(torch.full((2,), own).to(dtype), 1) for dtype in DTYPES]
        scalar = tensor_from(torch.tensor(own), 1)
        total = summed(several)
        assert torch.equal(several, torch.full((3, 2), own)), "the argument stays"
        words = from_first(f"from {rank()}")
        return [total.tolist(), gathered(rank()), words, [one.tolist() for one in chosen], scalar.item()]

    found = together(count, work)
    assert all(one == found[0] for one in found)
    total, ranks, word, chosen, scalar = found[0]
    assert total == [[math.comb(count + 1, 2)] * 2] * 3
    assert ranks == list(range(count))
    assert word == "from 0"
    assert chosen == [[2.0, 2.0]] * 4 + [[2, 2], [True, True]]
    assert scalar == 2


def test_one_process_has_everything() -> None:
    tensor = torch.ones(2)
    assert (rank(), size(), is_first()) == (0, 1, True)
    assert summed(tensor) is tensor
    assert tensor_from(tensor) is tensor
    assert gathered("a") == ["a"]
    assert from_first("a") == "a"


@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_sent_stays_as_it_is(transposed: bool) -> None:
    numbers = torch.arange(6.0).reshape(2, 3)

    def work() -> list[list[list[float]]]:
        own = numbers * (rank() + 1)
        own = own.t() if transposed else own
        before = own.clone()
        found = summed(own), tensor_from(own, 1)
        assert torch.equal(own, before)
        return [one.tolist() for one in found]

    expected = numbers.t() if transposed else numbers
    assert together(2, work) == [[(3 * expected).tolist(), (2 * expected).tolist()]] * 2


@pytest.mark.parametrize("fails", [0, 1])
def test_a_process_that_fails_ends_all_with_its_error(fails: int) -> None:
    def work() -> None:
        if rank() == fails:
            time.sleep(0.5)  # the others wait for it
            raise UserError("the data are not there")
        gathered(rank())

    with pytest.raises(ChildError) as caught:
        together(3, work)
    said = str(caught.value)
    assert said.count("UserError: the data are not there") == 1
    assert said.count(f"process {fails + 1} of 3 has failed: the data are not there") == 2


@pytest.mark.parametrize("fails", [0, 2])
def test_an_error_while_the_others_are_done_reaches_them(fails: int) -> None:
    def work() -> None:
        with joined("cpu") as number:
            if number == fails:
                time.sleep(1)
                raise UserError("the disk is full")

    with pytest.raises(ChildError) as caught:
        together(3, work, joining=False)
    said = str(caught.value)
    assert said.count(f"process {fails + 1} of 3 has failed: the disk is full") == 2
    assert "gloo" not in said


def test_processes_join_again_after_an_error() -> None:
    """As the jobs of a sweep in one process do."""

    def fail(which: int, reason: str) -> None:
        with joined("cpu"):
            if rank() == which:
                raise UserError(reason)
            gathered(rank())

    def work() -> list[int]:
        for which, reason in enumerate(("one is ill", "another is ill")):
            with pytest.raises(UserError, match=reason):
                fail(which, reason)
        with joined("cpu"):
            return gathered(rank())

    assert together(2, work, joining=False) == [[0, 1]] * 2
