"""Run the end of a model again and again on stored inputs: the blocks before the one that is probed return what they returned once."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
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

    def __init__(self, model: PrunableModel, batch: Batch, around: Collection[nn.Module] = ()) -> None:
        """Run the batch once and store what every block puts out, on the model's device.

        Args:
            model: in evaluation mode.
            batch: its inputs.
            around: modules outside the blocks that need not run again either; see ``growing_modules``.
        """
        self.model, self.batch = model, batch
        self.samples = samples_in(batch)
        self.outputs: dict[nn.Module, list[Any]] = defaultdict(list)
        self.order: list[nn.Module] = []
        self._copies: tuple[int, Batch] = (1, batch)
        with torch.no_grad(), _hooked((*(block.module for block in model.blocks), *around), self._store):
            self.losses = model.loss(batch)

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
        if self._copies[0] != copies:
            self._copies = copies, _repeated(self.batch, copies)
        with self._replaying(Counter(self.order[: self.order.index(block)]), copies):
            return self.model.loss(self._copies[1], copies).view(copies, self.samples)

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


def growing_modules(model: PrunableModel, batch: Batch) -> list[nn.Module]:
    """The modules outside the blocks that run before some block, and put out twice as much for two copies of a batch: embeddings, projections.

    Their outputs can be stored and repeated like a block's. Others, such as positions that all samples share, are left to run.
    """
    batch = {name: tensor[:2] for name, tensor in batch.items()}
    blocks = {block.module for block in model.blocks}
    outside = _outside(model.module, blocks)
    once, twice = (_calls(model, _repeated(batch, copies), copies, (*blocks, *outside)) for copies in (1, 2))
    for calls in (once, twice):
        while calls and calls[-1][0] not in blocks:  # logits, for one
            calls.pop()
    if [module for module, _ in once] != [module for module, _ in twice]:
        return []
    others = {module for (module, one), (_, two) in zip(once, twice, strict=True) if not _is_twice(one, two)}
    return [module for module in dict.fromkeys(module for module, _ in once) if module not in blocks | others]


@torch.no_grad()
def _calls(model: PrunableModel, batch: Batch, copies: int, modules: Iterable[nn.Module]) -> list[tuple[nn.Module, Any]]:
    """The calls of some modules during a forward pass, in order, with what they put out."""
    calls: list[tuple[nn.Module, Any]] = []
    with _hooked(modules, lambda module, _, output: calls.append((module, output))):
        model.loss(batch, copies)
    return calls


def _outside(module: nn.Module, blocks: Collection[nn.Module]) -> list[nn.Module]:
    """The largest modules that hold no block."""
    if module in blocks:
        return []
    if not any(child in blocks for child in module.modules()):
        return [module]
    return [found for child in module.children() for found in _outside(child, blocks)]


def _is_twice(one: Any, two: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(two, Tensor) or not one.ndim or two.shape != (2 * one.shape[0], *one.shape[1:]):
        return False
    scale = float(one.abs().max()) if one.numel() else 0.0
    return math.isfinite(scale) and torch.allclose(two, _repeat(one, 2), rtol=1e-3, atol=1e-3 * scale)


@contextmanager
def _hooked(modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """Call a hook after each call of some modules."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _repeated(batch: Batch, copies: int) -> Batch:
    return {name: _repeat(tensor, copies) for name, tensor in batch.items()}


def _repeat(tensor: Tensor, copies: int) -> Tensor:
    return tensor.repeat(copies, *[1] * (tensor.ndim - 1)) if copies > 1 else tensor
