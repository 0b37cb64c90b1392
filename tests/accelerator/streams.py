"""Streams of the pretend accelerator. What they are given is done at once; they check that it might be later.

A copy that the host doesn't wait for has been made for its own stream alone. Other streams see it once they
have waited for an event after it, and the host once it has synchronised. Whoever reads it before is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tests.accelerator.state import note, storage


class TooEarlyError(RuntimeError):
    """Something reads a tensor before its copy has been waited for."""


@dataclass(eq=False)
class Stream:
    """A queue of work.

    Attributes:
        device: its device.
        issued: how many copies were put into it.
        seen: how many copies of other streams it has waited for.
    """

    device: Any = None
    issued: int = 0
    seen: dict[Stream, int] = field(default_factory=dict)

    def record_event(self) -> Event:
        note("stream", "event")
        return Event(self, self.issued)

    def wait_event(self, event: Event) -> None:
        note("stream", "wait")
        self.seen[event.stream] = max(self.seen.get(event.stream, 0), event.issued)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self.record_event().synchronize()


@dataclass(frozen=True)
class Event:
    """A place in a stream: behind so many copies."""

    stream: Stream
    issued: int

    def synchronize(self) -> None:
        note("wait", "event")
        HOST.seen[self.stream] = max(HOST.seen.get(self.stream, 0), self.issued)


HOST, DEFAULT = Stream(), Stream()
_present = [DEFAULT]


def current_stream(device: Any = None) -> Stream:
    """The stream that work goes into."""
    return _present[-1]


@contextmanager
def into(stream: Stream) -> Iterator[None]:
    """Put work into a stream."""
    _present.append(stream)
    try:
        yield
    finally:
        _present.pop()


def note_issued(copy: Tensor) -> None:
    """Note that a copy was put into the present stream."""
    stream = current_stream()
    stream.issued += 1
    storage(copy).copied = (stream, stream.issued)  # type: ignore[attr-defined]


def check_seen(tensor: Tensor, there: bool) -> None:
    """Refuse to read a copy too early, on the device or on the host.

    Raises:
        TooEarlyError: if the copy was not waited for.
    """
    stream, issued = getattr(storage(tensor), "copied", (None, 0))
    reader = current_stream() if there else HOST
    if stream is not None and stream is not reader and reader.seen.get(stream, 0) < issued:
        where = "the device" if there else "the host"
        raise TooEarlyError(f"{where} reads {tuple(tensor.shape)} before its copy was waited for")
