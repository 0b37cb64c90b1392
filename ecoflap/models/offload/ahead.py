"""Which block is used next, and work in the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Order:
    """Guesses the next block: the one that came last time after the same two, or else the model's next.

    Two blocks tell a forward pass from a backward one, and the end of one pass is followed by the beginning
    of the next.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Begin with the order of the model.

        Args:
            names: of the blocks, in the model's order.
        """
        self._behind = dict(zip(names, [*names[1:], *names[:1]], strict=True))
        self._learned: dict[tuple[str, str], str] = {}
        self._last: tuple[str, str] = ("", "")  # the block before, and the present one

    def use(self, name: str) -> None:
        """Note that a block is used."""
        if name != self._last[1]:
            self._learned[self._last] = name
            self._last = self._last[1], name

    def next(self) -> str:
        """The block that is probably used next."""
        return self._learned.get(self._last, self._behind[self._last[1]])


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """Do some work in a thread of its own, which ends with the work."""
    executor = ThreadPoolExecutor(1, "offload")
    try:
        return executor.submit(work)
    finally:
        executor.shutdown(wait=False)


def at_once(work: Callable[[], Result]) -> Future[Result]:
    """Do some work now; what it raises is raised where its result is asked for."""
    done: Future[Result] = Future()
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
    return done
