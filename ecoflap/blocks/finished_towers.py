"""Finished towers: their outputs are stored, so that later towers are captured without recomputing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ecoflap.blocks.activations import OffloadedTensor
from ecoflap.blocks.block_call import first_tensor
from ecoflap.blocks.bypass import Bypass, SubstituteForward
from ecoflap.errors import UserError
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.towers import Tower


@dataclass(frozen=True)
class FinishedTower:
    """A tower that is pruned, with its stored outputs.

    Attributes:
        tower: its blocks.
        bypasses: how to bypass each block.
        outputs: outputs of the last block, [batch, tokens, features] per pass of each batch; empty where the
            tower has to be run again.
    """

    tower: Tower
    bypasses: Mapping[nn.Module, Bypass]
    outputs: list[list[OffloadedTensor]]

    def bypass_with(
        self, outputs: Sequence[Tensor], change: Callable[[Tensor], Tensor] = lambda hidden: hidden
    ) -> dict[nn.Module, SubstituteForward]:
        """Forwards that bypass all blocks of the tower.

        Args:
            outputs: what the last block returns, pass by pass, [batch, tokens, features].
            change: what the blocks before the last do to their hidden states.

        Returns:
            The substitute forward of each block.

        Raises:
            UserError: while the model runs, if it runs the tower more often than there are outputs.
        """
        last, remaining = self.tower.blocks[-1].module, iter(outputs)

        def stored(_: Tensor) -> Tensor:
            output = next(remaining, None)
            if output is None:
                raise UserError(
                    f"a batch runs tower {self.tower.name} ({self.tower.path}) more than {len(outputs)}"
                    " times, and the largest batch's first two samples don't; calibrate on samples of one"
                    " kind, or leave the tower out of towers"
                )
            return output.clone()  # the model may write into it

        forwards = {module: bypass.substitute(change) for module, bypass in self.bypasses.items()}
        return {**forwards, last: self.bypasses[last].substitute(stored)}


class TowerPasses:
    """Records the passes through finished towers during one forward pass that computes them.

    Attributes:
        towers: the finished towers, in pruning order.
        outputs: of each tower's last block, [batch, tokens, features] per pass.
        order: the index of a tower each time one of its blocks begins or ends.
    """

    def __init__(self, towers: Sequence[Tower]) -> None:
        self.towers = towers
        self.outputs: list[list[Tensor]] = [[] for _ in towers]
        self.order: list[int] = []

    def recording(self) -> AbstractContextManager[None]:
        """Record the forward pass that runs in this context."""
        return hooks(self._watch())

    def _watch(self) -> Iterator[RemovableHandle]:
        for number, tower in enumerate(self.towers):
            note = partial(self._note, number)
            for block in tower.blocks:
                yield block.module.register_forward_pre_hook(note)
                yield block.module.register_forward_hook(note)
            yield tower.blocks[-1].module.register_forward_hook(partial(self._store, number))

    def _note(self, number: int, *_: Any) -> None:
        self.order.append(number)

    def _store(self, number: int, _: nn.Module, __: Any, output: Any) -> None:
        self.outputs[number].append(first_tensor(output).clone())

    def independent(self) -> list[int]:
        """The towers that end before any tower that was pruned later begins.

        Their outputs do not depend on the weights of those.
        """
        ends = {number: len(self.order) - 1 - self.order[::-1].index(number) for number in self.order}
        return [
            number
            for number in ends
            if all(self.order.index(later) > ends[number] for later in ends if later > number)
        ]
