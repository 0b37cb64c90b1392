"""Run the end of a model again and again on stored inputs: the blocks before the one that is probed return what they returned once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.calibrate.forwards import with_forwards
from ecoflap.errors import UserError
from ecoflap.models.prunable import Batch, PrunableModel, samples_in


class SuffixRunner:
    """Forward passes of one batch that recompute only the blocks from a given one on.

    A probe in a later tower skips the earlier towers whole. Several copies of the batch, each with its own probe, share one pass.
    """

    def __init__(self, model: PrunableModel, batch: Batch) -> None:
        """Run the batch once and store every block's output, on the model's device."""
        self.model, self.batch = model, batch
        self.samples = samples_in(batch)
        self.outputs: dict[nn.Module, list[Any]] = defaultdict(list)
        self.order: list[nn.Module] = []
        handles = [block.module.register_forward_hook(self._store) for block in model.blocks]
        try:
            with torch.no_grad():
                self.losses = model.loss(batch)
        finally:
            for handle in handles:
                handle.remove()

    def _store(self, module: nn.Module, _: Any, output: Any) -> None:
        self.order.append(module)
        self.outputs[module].append(output)

    @torch.no_grad()
    def losses_from(self, block: nn.Module, copies: int) -> Tensor:
        """Losses [copies, batch] of ``copies`` replicas of the batch, recomputed from ``block`` on.

        Raises:
            UserError: the batch never reached the block.
        """
        if block not in self.outputs:
            name = next(known.name for known in self.model.blocks if known.module is block)
            raise UserError(f"the calibration data never reach {name}, so the loss does not depend on it; leave its tower out of towers")
        batch = {name: _repeat(tensor, copies) for name, tensor in self.batch.items()}
        with self._replaying(Counter(self.order[: self.order.index(block)]), copies):
            return self.model.loss(batch, copies).view(copies, self.samples)

    def _replaying(self, prefix: Counter[nn.Module], copies: int) -> AbstractContextManager[None]:
        """Let the first so many calls of each block of the prefix return their stored outputs instead of computing."""
        return with_forwards({module: self._player(self.outputs[module][:calls], module.forward, copies) for module, calls in prefix.items()})

    def _player(self, outputs: list[Any], forward: Callable[..., Any], copies: int) -> Callable[..., Any]:
        """A forward that plays the stored outputs; a call after them (the tower's next pass) may depend on the probe, and is computed."""
        turn = iter(outputs)

        def play(*arguments: Any, **keywords: Any) -> Any:
            stored = next(turn, None)
            return forward(*arguments, **keywords) if stored is None else self._expand(stored, copies)

        return play

    def _expand(self, output: Any, copies: int) -> Any:
        """Repeat a block's hidden states, and what else in its output has one entry per sample; a mask or bias shared by all stays as it is."""
        if isinstance(output, Tensor):
            return _repeat(output, copies)
        hidden, *rest = output
        return type(output)((_repeat(hidden, copies), *(self._expand_rest(item, copies) for item in rest)))

    def _expand_rest(self, item: Any, copies: int) -> Any:
        if isinstance(item, Tensor):
            return _repeat(item, copies) if item.ndim > 2 and item.shape[0] == self.samples else item
        return type(item)(self._expand_rest(inner, copies) for inner in item) if isinstance(item, tuple | list) else item


def _repeat(tensor: Tensor, copies: int) -> Tensor:
    return tensor.repeat(copies, *[1] * (tensor.ndim - 1)) if copies > 1 else tensor
