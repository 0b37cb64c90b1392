"""Copies of weights between the host and a device, beside the computation where the device has streams.

The memory of the weights belongs to the stream of the copies. A block's memory is used again as soon as the
computation that was queued before is done, so no more than the blocks in use are ever allocated.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ecoflap.console.telemetry import free_memory

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]


class Copies:
    """Copies weights to a device and back.

    On a device with streams, a copy is issued and the host goes on; whoever reads the weights waits for the
    event of the copy. On other devices a copy is done when the call returns, and on the CPU there is none.
    """

    def __init__(self, device: torch.device) -> None:
        """Make the stream.

        Args:
            device: the device that blocks run on.
        """
        self.device = device
        self._streams = _streams(device)
        self._stream: Any = None if self._streams is None else self._streams.Stream(device=device)

    def room(self, shapes: Shapes) -> dict[str, Tensor]:
        """Memory on the device for weights; none where a copy brings its own.

        Copies into it wait for the computation that is queued now, which may read what was there before.
        """
        if self._streams is None:
            return {}
        self._stream.wait_stream(self._streams.current_stream(self.device))
        with self._streams.stream(self._stream):
            return {
                name: torch.empty(shape, dtype=dtype, device=self.device)
                for name, (shape, dtype) in shapes.items()
            }

    def send(self, tensor: Tensor, room: Tensor | None) -> Tensor:
        """A weight on the device; with streams, copied from pinned memory into ``room``."""
        if self._streams is None or room is None:
            return tensor.to(self.device)
        if tensor.dtype != room.dtype:
            self.finish()  # the host converts, and the weight may still be on its way back to it
        source = tensor.to(room.dtype)
        source = source if source.is_pinned() else source.pin_memory()
        with self._streams.stream(self._stream):
            return room.copy_(source, non_blocking=True)

    def sent(self) -> Any:
        """The event at which everything that was sent so far has arrived; None where it has already."""
        return None if self._streams is None else self._stream.record_event()

    def await_on_device(self, event: Any) -> None:
        """Let the computation that is queued from now on wait for an event; the host does not wait."""
        if self._streams is not None:
            self._streams.current_stream(self.device).wait_event(event)

    def bring_back(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Weights on the host, in pinned memory where that helps, and the event at which they are there."""
        if self._streams is None:
            return {name: tensor.detach().cpu() for name, tensor in tensors.items()}, None
        self._stream.wait_stream(self._streams.current_stream(self.device))
        found = {}
        with self._streams.stream(self._stream):
            for name, tensor in tensors.items():
                found[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                found[name].copy_(tensor.detach(), non_blocking=True)
                tensor.record_stream(self._stream)  # a pruned weight may be new memory of another stream
        return found, self._stream.record_event()

    def finish(self) -> None:
        """Wait until all copies are done."""
        if self._streams is not None:
            self._stream.synchronize()


def _streams(device: torch.device) -> Any | None:
    """The PyTorch module of a device with streams, such as ``torch.cuda``; None of one without."""
    if device.type in ("cpu", "meta"):
        return None
    module = torch.get_device_module(device)
    return module if hasattr(module, "Stream") else None


def pinned(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors of the host in pinned memory, from which a device copies while the host goes on.

    They stay as they are for a device without streams, and where the host's memory is short: PyTorch rounds
    each pinned allocation up to a power of two.

    Args:
        tensors: on the CPU.
        device: the device that will copy them.
    """
    if _streams(device) is None:
        return dict(tensors)
    needed = sum(1 << max(tensor.nbytes - 1, 0).bit_length() for tensor in tensors.values())
    if needed > free_memory(torch.device("cpu")):
        log.warning("the host's memory is too short to pin the blocks' weights: each is pinned to be copied")
        return dict(tensors)
    return {name: tensor.pin_memory() for name, tensor in tensors.items()}
