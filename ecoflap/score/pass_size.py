"""How many probes share a forward pass: enough to keep the device busy, as far as memory allows.

The number comes from the memory that a first probe takes, and is halved whenever memory runs out.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ecoflap.console.telemetry import free_memory, out_of_memory
from ecoflap.errors import UserError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
MEMORY_SHARE = 0.5  # usable share of the free memory, as allocators round up and fragment
SATURATION = 2**30  # bytes of activations that keep any device busy


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the live tensors that were created in this context.

    Attributes:
        alive: bytes alive now.
        peak: the largest number of bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count the storages of its outputs."""
        output = func(*args, **(kwargs or {}))
        for item in output if isinstance(output, tuple | list) else (output,):
            if isinstance(item, Tensor) and not func.is_view and item.untyped_storage() not in self._known:
                storage = item.untyped_storage()
                self._known.add(storage)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return output

    def _freed(self, size: int) -> None:
        self.alive -= size


class PassSize:
    """Decides how many equal pieces of work share a pass.

    Attributes:
        capacity: pieces per pass, as far as is known; None before the first pass.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        """Begin without a measurement.

        Args:
            limit: the most pieces per pass, whatever the memory.
            device: the device that does the work.
        """
        self.limit, self.device = max(1, limit), device
        self.capacity: int | None = None

    def passes(
        self, pieces: Sequence[Item], work: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Do all pieces of work, as many per pass as fit.

        Args:
            pieces: the pieces of work.
            work: does some of them in one pass.

        Yields:
            The pieces that shared a pass, and the result of ``work``.

        Raises:
            UserError: if memory does not hold a single piece.
        """
        while pieces:
            some = pieces[: self.capacity or 1]
            try:
                result = self._measured(some, work) if self.capacity is None else work(some)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if len(some) == 1:
                    raise UserError(
                        "memory does not hold one pair of probes of one batch; use a smaller"
                        " score.batch_size, or score=first_order"
                    ) from error
                self.capacity = len(some) // 2
                message = "score: out of memory with %d pairs of probes in a pass; continuing with %d"
                log.info(message, len(some), self.capacity)
            else:
                yield some, result
                pieces = pieces[len(some) :]

    def _measured(self, piece: Sequence[Item], work: Callable[[Sequence[Item]], Result]) -> Result:
        """Do one piece, and derive the capacity from the memory that it takes."""
        free = free_memory(self.device)
        with LiveBytes() as live:
            result = work(piece)
        fitting = int(min(MEMORY_SHARE * free, SATURATION) / max(live.peak, 1))
        self.capacity = max(1, min(self.limit, fitting))
        return result
