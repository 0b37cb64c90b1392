"""Record the calls of a tower's blocks during one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.calibrate.block_call import BlockCall, first_tensor, take_out_hidden
from ecoflap.calibrate.shortcut import Shortcut, shortcut
from ecoflap.errors import UserError
from ecoflap.models.losses import counted_tokens
from ecoflap.models.towers import Tower


class Captured(BaseException):
    """Ends a forward pass after the tower; no model code can mistake it for an error of its own."""


class Recorder:
    """Records the calls of a tower's blocks during one forward pass, and ends the pass when the last one is known.

    Attributes:
        calls: of each block: its arguments, its hidden states and which tokens are real.
        chained: each block got what the block before it put out.
        shortcuts: {block: how to pass it without computing it}, null where it has to be run; learned where the number of passes isn't known yet.
    """

    def __init__(self, tower: Tower, passes: int) -> None:
        """``passes``: how often the tower is run; 0 where that isn't known yet."""
        self.tower, self.expected = tower, passes
        self.calls: list[list[tuple[BlockCall, Tensor, tuple[Tensor, ...]]]] = [[] for _ in tower.blocks]
        self.chained = True
        self.shortcuts: dict[nn.Module, Shortcut | None] = {}
        self._last: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record what happens meanwhile."""
        handles = []
        for index, block in enumerate(self.tower.blocks):
            handles.append(block.module.register_forward_pre_hook(self._before(index), with_kwargs=True))
            handles.append(block.module.register_forward_hook(self._after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            call, hidden = take_out_hidden(arguments, keywords)
            if index and self._last is not None and hidden is not self._last and not torch.equal(hidden, self._last):
                self.chained = False
            self.calls[index].append((call, hidden, counted_tokens()))
            if index == len(self.calls) - 1 and len(self.calls[index]) == self.expected:
                raise Captured

        return record

    def _after(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        self._last = first_tensor(output)
        if not self.expected and self.shortcuts.get(module, ()) is not None:  # one call that makes more than hidden states settles it
            call, _ = take_out_hidden(arguments, keywords)
            self.shortcuts[module] = shortcut(arguments, keywords, call.place, output)

    def arguments(self) -> list[list[BlockCall]]:
        """What each block got beside the hidden states, call by call."""
        return [[call for call, _, _ in calls] for calls in self.calls]

    def entered(self) -> list[Tensor]:
        """The hidden states that the first block got, call by call."""
        return [hidden for _, hidden, _ in self.calls[0]]

    def passes(self) -> int:
        """How often each block was called.

        Raises:
            UserError: some more often than others, or never.
        """
        counts = [len(calls) for calls in self.calls]
        if min(counts) == 0:
            reached = sum(map(bool, counts))
            raise UserError(
                f"the calibration data never reach all blocks of tower {self.tower.name} ({self.tower.path}): "
                f"{reached} of {len(counts)} were called; leave it out of towers"
            )
        if len(set(counts)) > 1:
            raise UserError(
                f"the blocks of tower {self.tower.name} ({self.tower.path}) are called {min(counts)} to {max(counts)} times per batch; "
                "name lists of blocks that always run together with model.towers"
            )
        return counts[0]
