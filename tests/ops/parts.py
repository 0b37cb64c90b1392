"""Run a function on parts of the rows of matrices at the same time, in threads that add up what they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from torch import Tensor

from ecoflap.ops import Part

Result = TypeVar("Result")
Work = Callable[[Sequence[Tensor], Sequence[Part]], Result]


def in_parts(matrices: Sequence[Tensor], count: int, work: Work[Result]) -> list[Result]:
    """What the function returns for each part of the rows of all matrices, in order."""
    barrier, given = Barrier(count), [Tensor()] * count

    def run(number: int) -> Result:
        def summed(tensor: Tensor) -> Tensor:
            given[number] = tensor
            barrier.wait(timeout=60)
            total = sum(given[1:], given[0].clone())
            barrier.wait(timeout=60)
            return total

        spans = [slice(len(one) * number // count, len(one) * (number + 1) // count) for one in matrices]
        parts = [Part(span.start, len(one), summed) for one, span in zip(matrices, spans, strict=True)]
        try:
            return work([one[span] for one, span in zip(matrices, spans, strict=True)], parts)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
