"""Towers that are finished: what they put out is kept, so that the forward passes to later towers don't
compute them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ecoflap.blocks.activations import Waiting
from ecoflap.blocks.block_call import first_tensor
from ecoflap.blocks.bypass import Bypass, SubstituteForward
from ecoflap.errors import UserError
from ecoflap.models.core.towers import Tower


@dataclass(frozen=True)
class FinishedTower:
    """One of them.

    Attributes:
        tower: its blocks.
        bypasses: how to bypass them.
        outputs: what the last block put out in each pass of each batch; empty where the tower has to be run
            again.
    """

    tower: Tower
    bypasses: Mapping[nn.Module, Bypass]
    outputs: list[list[Waiting]]

    def ending_with(
        self, outputs: Sequence[Tensor], between: Callable[[Tensor], Tensor] = lambda hidden: hidden
    ) -> dict[nn.Module, SubstituteForward]:
        """Ways through the tower.

        Args:
            outputs: what its passes end with, one after the other.
            between: what blocks before the last make of their hidden states.

        Raises:
            UserError: while the model runs, if it runs the tower more often than that.
        """
        block, turn = self.tower.blocks[-1].module, iter(outputs)

        def end(_: Tensor) -> Tensor:
            output = next(turn, None)
            if output is None:
                raise UserError(
                    f"a batch runs tower {self.tower.name} ({self.tower.path}) more than {len(outputs)}"
                    " times, and the largest batch's first two samples don't; calibrate on samples of one"
                    " kind, or leave the tower out of towers"
                )
            return output.clone()  # the model may write into it

        ways = {module: made.changed(between) for module, made in self.bypasses.items()}
        return {**ways, block: self.bypasses[block].changed(end)}


class TowerPasses:
    """What is seen of finished towers during one forward pass that computes them.

    Attributes:
        outputs: of each tower's last block, pass by pass.
        order: the index of a tower whenever one of its blocks begins or ends.
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
            for block in tower.blocks:
                handles.append(
                    block.module.register_forward_pre_hook(
                        lambda *_, number=number: self.order.append(number)
                    )
                )
                handles.append(
                    block.module.register_forward_hook(lambda *_, number=number: self.order.append(number))
                )
            handles.append(
                tower.blocks[-1].module.register_forward_hook(
                    lambda _, __, output, number=number: self._end(number, output)
                )
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _end(self, number: int, output: Any) -> None:
        self.outputs[number].append(first_tensor(output).clone())

    def current(self) -> list[int]:
        """The towers that end before any that was pruned after them begins: what they put out does not depend
        on those.
        """
        ends = {number: len(self.order) - 1 - self.order[::-1].index(number) for number in self.order}
        return [
            number
            for number in ends
            if all(self.order.index(later) > ends[number] for later in ends if later > number)
        ]
