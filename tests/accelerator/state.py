"""Which tensors are on the pretend accelerator, and what it is asked to write down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

NAME = "npy"


@dataclass(frozen=True)
class Event:
    """What happened on the device, in the program's order.

    Attributes:
        kind: "copy" to or from the device, "compute", "wait" (the host needs a value), or "backward".
        what: the operation, the shape of what is copied, or the begin or the end of a backward pass.
    """

    kind: str
    what: str


class State:
    """Of the device of this process.

    Attributes:
        events: where events are written; null for nowhere.
        fp64: whether it has double precision; Apple's has none.
    """

    events: list[Event] | None = None
    fp64 = True


@contextmanager
def recording() -> Iterator[list[Event]]:
    """The events of the body."""
    State.events, before = [], State.events
    try:
        yield State.events
    finally:
        State.events = before


@contextmanager
def without_fp64() -> Iterator[None]:
    """Refuse double precision on the device."""
    State.fp64 = False
    try:
        yield
    finally:
        State.fp64 = True


def note(kind: str, what: str) -> None:
    """Write an event down, where that is asked for."""
    if State.events is not None:
        State.events.append(Event(kind, what))


def note_copy(tensor: Tensor, there: bool, non_blocking: bool) -> None:
    """Write down a copy to the device, or from it, which the host waits for unless it is told not to."""
    note("copy", f"{tuple(tensor.shape)} to {NAME if there else 'cpu'}")
    if not there and not non_blocking:
        note("wait", "copy")


def storage(tensor: Tensor) -> torch.UntypedStorage:
    """A tensor's storage, whose Python object lives as long as the memory; in ``vmap``, the whole batch's."""
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def on_device(tensor: Tensor) -> bool:
    """Whether a tensor's storage carries the mark."""
    return tensor.layout == torch.strided and getattr(storage(tensor), "on_device", False)


def place(tensor: Tensor, there: bool = True) -> Tensor:
    """Put the mark on a tensor's storage, or take it off.

    Raises:
        TypeError: the device has no such dtype.
    """
    if there and not State.fp64 and tensor.dtype == torch.float64:
        raise TypeError(f"{NAME} has no float64")
    storage(tensor).on_device = there  # type: ignore[attr-defined]
    return tensor
