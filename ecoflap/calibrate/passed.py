"""Towers that are finished: what they put out is kept, so that the forward passes to later towers don't compute them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ecoflap.calibrate.activations import Waiting
from ecoflap.calibrate.block_call import BlockCall, first_tensor
from ecoflap.calibrate.shortcut import Shortcut
from ecoflap.models.towers import Tower


@dataclass(frozen=True)
class Passed:
    """One of them.

    Attributes:
        tower: its blocks.
        shortcuts: how to pass them without computing; the last one is among them.
        last: a call of the last block, which says where the hidden states are.
        outputs: what the last block put out in each pass of each batch.
    """

    tower: Tower
    shortcuts: dict[nn.Module, Shortcut]
    last: BlockCall
    outputs: list[list[Waiting]]

    def ending_with(self, outputs: Sequence[Tensor]) -> dict[nn.Module, Shortcut]:
        """Shortcuts through the tower, whose passes end with these hidden states, one after the other."""
        block, turn = self.tower.blocks[-1].module, iter(outputs)
        make = self.shortcuts[block]

        def end(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            return make(*self.last.placed(arguments, keywords, next(turn)))

        return {**self.shortcuts, block: end}


class Passages:
    """What is seen of finished towers during one forward pass that computes them.

    Attributes:
        outputs: of each tower's last block, pass by pass.
        order: the index of a tower whenever its first block begins or its last block ends.
    """

    def __init__(self, towers: Sequence[Tower]) -> None:
        self.towers = towers
        self.outputs: list[list[Tensor]] = [[] for _ in towers]
        self.order: list[int] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what happens meanwhile."""
        handles = []
        for number, tower in enumerate(self.towers):
            handles.append(tower.blocks[0].module.register_forward_pre_hook(lambda *_, number=number: self.order.append(number)))
            handles.append(tower.blocks[-1].module.register_forward_hook(lambda _, __, output, number=number: self._end(number, output)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _end(self, number: int, output: Any) -> None:
        self.order.append(number)
        self.outputs[number].append(first_tensor(output))

    def current(self) -> list[int]:
        """The towers that end before any that was pruned after them begins: what they put out does not depend on those."""
        ends = {number: len(self.order) - 1 - self.order[::-1].index(number) for number in self.order}
        return [number for number in ends if all(self.order.index(later) > ends[number] for later in ends if later > number)]
