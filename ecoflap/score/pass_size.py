"""How many probes share a forward pass.

As many as keep the device busy and memory holds: found by measuring the first pass, and by giving way when
memory runs out.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ecoflap.console.telemetry import free_memory, out_of_memory
from ecoflap.errors import UserError

log = logging.getLogger(__name__)

Result = TypeVar("Result")
SHARE = 0.5  # of the free memory; allocators round up and fragment
ENOUGH = 2**30  # bytes of activations at one time: more keep no device busier


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it and still alive.

    Attributes:
        peak: the most at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count what it made."""
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
    """Decides how many of some equal pieces of work go into one pass.

    Attributes:
        most: the bound as it is known now; null before the first pass.
    """

    def __init__(self, asked: int, device: torch.device) -> None:
        """``asked``: as many as there may be, whatever the memory."""
        self.asked, self.device = max(1, asked), device
        self.most: int | None = None

    def run(self, pieces: int, work: Callable[[int], Result]) -> tuple[Result, int]:
        """Do as many of ``pieces`` as fit in one pass.

        Args:
            pieces: how many are waiting, at least one.
            work: does so many of them in one pass.

        Returns:
            What ``work`` returned, and how many it did.

        Raises:
            UserError: memory does not hold a single one.
        """
        while True:
            count = min(pieces, self.most or 1)
            try:
                return (self._measured(work) if self.most is None else work(count)), count
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if count == 1:
                    raise UserError(
                        "memory does not hold one pair of probes of one batch; use a smaller"
                        " score.batch_size, or score=first_order"
                    ) from error
                self.most = count // 2
                log.info(
                    "score: out of memory with %d pairs of probes in a pass; going on with %d",
                    count,
                    self.most,
                )

    def _measured(self, work: Callable[[int], Result]) -> Result:
        """Do the first piece alone, and conclude how many fit."""
        free = free_memory(self.device)
        with LiveBytes() as live:
            result = work(1)
        self.most = max(1, min(self.asked, int(min(SHARE * free, ENOUGH) / max(live.peak, 1))))
        return result
