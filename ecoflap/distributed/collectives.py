"""Shares of work, and the operations that make one result of what all processes have.

In a run of one process, each share is everything, and the operations return what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from ecoflap.data.batch import Batch, samples_in
from ecoflap.distributed.processes import control_group, naming_the_failed, rank, size
from ecoflap.errors import UserError

Item = TypeVar("Item")


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's items: those of all processes, in the order of their ranks, are all items in order."""
    start, end = _bounds(len(items))
    return items[start:end]


def share_of_samples(batches: Sequence[Batch]) -> list[Batch]:
    """This process's samples, in batches, which are cut only if there are fewer than processes.

    Raises:
        UserError: if there are fewer samples than processes.
    """
    if not batches:
        return []
    lengths = list(map(samples_in, batches))
    if len(batches) >= size():
        start, end = _cuts(lengths)[rank() : rank() + 2]
        return list(batches[start:end])
    total = sum(lengths)
    if total < size():
        raise UserError(
            f"{size()} processes share {total} calibration samples, and each needs one; start fewer"
            " processes, or draw more calibration.samples"
        )
    start, end = _bounds(total)
    own: list[Batch] = []
    for batch in batches:
        count = samples_in(batch)
        first, last = max(start, 0), min(end, count)
        if first < last:
            own.append({name: tensor[first:last] for name, tensor in batch.items()})
        start, end = start - count, end - count
    return own


def assign(costs: Sequence[float]) -> list[int]:
    """The rank that each piece of work is assigned to: the next largest goes to the least busy process."""
    busy, owners = [0.0] * size(), [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        owners[piece] = busy.index(min(busy))
        busy[owners[piece]] += costs[piece]
    return owners


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in its dtype and on its device."""
    if size() == 1:
        return tensor
    total = _carried(tensor)
    with naming_the_failed():
        distributed.all_reduce(total)
    return total.to(tensor.device)


def gathered(value: Item) -> list[Item]:
    """The values of all processes, in the order of their ranks."""
    found: list[Any] = [value] * size()
    if size() > 1:
        with naming_the_failed():
            distributed.all_gather_object(found, value, group=control_group())
    return found


def require_same(value: Callable[[], Item], what: str) -> None:
    """Refuse a run whose processes would add up what they compute of different things.

    Args:
        value: returns what is compared, such as a fingerprint; not called in a run of one process.
        what: what it is of, for the message.

    Raises:
        UserError: if some processes have another value than others.
    """
    if size() > 1 and len(set(gathered(value()))) > 1:
        raise UserError(
            f"the processes of the run have different {what}, and prune one model together: give all of them"
            " the same, as by one seed for whatever is drawn"
        )


def from_first(value: Item) -> Item:
    """The value that the first process has."""
    found = [value]
    if size() > 1:
        with naming_the_failed():
            distributed.broadcast_object_list(found, src=0, group=control_group())
    return found[0]


def tensor_from(tensor: Tensor, owner: int = 0) -> Tensor:
    """The tensor that one process has; all have one of its shape, dtype and device."""
    if size() == 1:
        return tensor
    sent = _carried(tensor)
    with naming_the_failed():
        # As bytes, because not every backend knows every dtype.
        distributed.broadcast(sent.flatten().view(torch.uint8), src=owner)
    return sent.to(tensor.device)


def _bounds(count: int) -> tuple[int, int]:
    return count * rank() // size(), count * (rank() + 1) // size()


def _cuts(lengths: Sequence[int]) -> list[int]:
    """Where each process's batches begin, and the end: at the batch nearest to its share of the samples.

    Args:
        lengths: samples in each batch; at least one batch for each process, which is what each gets.
    """
    before, cuts = [0, *accumulate(lengths)], [0]
    for number in range(1, size()):
        places = range(cuts[-1] + 1, len(lengths) - size() + number + 1)
        cuts.append(min(places, key=lambda place: abs(before[place] * size() - before[-1] * number)))
    return [*cuts, len(lengths)]


def _carried(tensor: Tensor) -> Tensor:
    """A copy of a tensor where a backend can carry it: on a CUDA device, or the CPU for all others."""
    carried = tensor.detach().clone(memory_format=torch.contiguous_format)
    return carried if carried.device.type == "cuda" else carried.cpu()
