"""Run the end of a model repeatedly: the blocks before the probed one return their stored outputs."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.blocks.containers import changed, contents
from ecoflap.blocks.patch_forward import patch_forward
from ecoflap.blocks.repeatable import repeat, repeated
from ecoflap.console.telemetry import out_of_memory
from ecoflap.data.batch import Batch, samples_in
from ecoflap.errors import UserError
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block

log = logging.getLogger(__name__)

# Of a loss: a hundred times the resolution of fp32, as copies of a batch may be summed in another order.
ROUNDING = 1e-5


class SuffixRunner:
    """Forward passes of one batch that recompute only the blocks from a given one on.

    A probe in a later tower skips all earlier towers. Several copies of the batch, each with its own probe,
    share one pass. A block that changes a container among its arguments, such as the key-value states that
    later blocks share, runs in every pass.

    Attributes:
        model: in evaluation mode.
        batch: its inputs.
        samples: number of samples in the batch.
        outputs: the stored outputs of each module, call by call.
        order: the module of each call.
        losses: loss of each sample, [batch].
    """

    def __init__(self, model: PrunableModel, batch: Batch, outer: Collection[nn.Module] = ()) -> None:
        """Run the batch once and store the outputs of every block on the model's device.

        Args:
            model: in evaluation mode.
            batch: its inputs.
            outer: modules outside the blocks that need not run again either; see ``repeatable_modules``.
        """
        self.model, self.batch = model, batch
        self.samples = samples_in(batch)
        self.outputs: dict[nn.Module, list[Any]] = defaultdict(list)
        self.order: list[nn.Module] = []
        # How many calls had ended when a block, or a layer of it, began.
        self._starts: dict[nn.Module, int] = {}
        self._writers: set[nn.Module] = set()
        self._copies: tuple[int, Batch] = (1, batch)
        modules = (*(block.module for block in model.blocks), *outer)
        recorded = {module: self._recording_forward(module, module.forward) for module in modules}
        with torch.no_grad(), self._recording_starts(), patch_forward(recorded):
            self.losses = model.loss(batch)

    def _recording_forward(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that stores its output, and notes whether it changes its arguments' contents."""

        def record(*arguments: Any, **keywords: Any) -> Any:
            given = (arguments, keywords)
            before = contents(given)
            output = forward(*arguments, **keywords)
            if changed(before, contents(given)):
                self._writers.add(module)
            self.order.append(module)
            self.outputs[module].append(output)
            return output

        return record

    def _recording_starts(self) -> AbstractContextManager[None]:
        """Record where each block begins; a layer may be called before its block, or inside another one."""
        return hooks(
            module.register_forward_pre_hook(partial(self._note_start, block.module))
            for block in self.model.blocks
            for module in {block.module, *(layer.module for layer in block.layers)}
        )

    def _note_start(self, block: nn.Module, *_: Any) -> None:
        self._starts.setdefault(block, len(self.order))

    def reaches(self, block: nn.Module) -> bool:
        """Whether the batch reaches a block, so that its loss can depend on it."""
        return block in self.outputs

    @torch.no_grad()
    def losses_from(self, block: nn.Module, copies: int) -> Tensor:
        """Losses of copies of the batch, recomputed from a block on.

        Args:
            block: the first block to run.
            copies: number of copies of the batch in one pass.

        Returns:
            Losses [copies, batch].

        Raises:
            UserError: if the batch never reaches the block.
        """
        if not self.reaches(block):
            name = next(known.name for known in self.model.blocks if known.module is block)
            raise UserError(
                f"the batch never reaches {name}, so its loss does not depend on it; leave its tower out of"
                " towers, or give data that reach it"
            )
        with self._replaying(Counter(self.order[: self._starts[block]]), copies):
            return self.losses_of_all(copies)

    @torch.no_grad()
    def losses_of_all(self, copies: int) -> Tensor:
        """Losses [copies, batch] of copies of the batch, with nothing replayed."""
        if self._copies[0] != copies:
            self._copies = copies, repeated(self.batch, copies)
        return self.model.loss(self._copies[1], copies).view(copies, self.samples)

    def can_replay(self, blocks: Sequence[Block], copies: int) -> bool:
        """Whether recomputing from each of the blocks on gives the losses of the whole model.

        Blocks may share state that no argument shows, such as attributes of modules. That state would be left
        from the pass before, and would be correct as long as nothing was probed in it; so the passes that are
        compared follow one in which every layer returned something else. The last block comes first, because
        a pass renews the state of the blocks that it computes.

        Args:
            blocks: the blocks to probe.
            copies: number of copies of the batch in one pass.
        """
        layers = [layer.module for block in self.model.blocks for layer in block.layers]
        with hooks(layer.register_forward_hook(lambda _, __, output: output.roll(1, -1)) for layer in layers):
            self.losses_of_all(copies)
        tolerance = ROUNDING * self.losses.abs().max()
        for block in sorted(blocks, key=lambda block: self._starts.get(block.module, 0), reverse=True):
            try:
                losses = self.losses_from(block.module, copies)
            except UserError:
                raise
            except Exception as error:  # whatever a model's code raises on state that no block has set
                if out_of_memory(error):
                    raise
                log.debug("%s can't be run on stored inputs: %r", block.name, error)
                return False
            if not bool(((losses - self.losses).abs() <= tolerance).all()):
                return False
        return True

    def require_repeatable(self) -> None:
        """Refuse a loss that differs from pass to pass, whose differences say nothing of a probe.

        Raises:
            UserError: if it does.
        """
        once, again = (float(self.losses_of_all(1).cpu().double().mean()) for _ in range(2))
        if abs(once - again) > ROUNDING * max(abs(once), abs(again)):
            raise UserError(
                f"two passes over the same samples have a loss of {once:.6g} and {again:.6g}, so their"
                " difference says nothing of a layer; let model and loss draw no random numbers and keep no"
                " state, or use score=none"
            )

    def _replaying(self, prefix: Counter[nn.Module], copies: int) -> AbstractContextManager[None]:
        """Let the first calls of each module return their stored outputs instead of computing.

        Args:
            prefix: how many calls of each module to replay.
            copies: number of copies of the batch in the pass.
        """
        forwards = {}
        for module, calls in prefix.items():
            if module not in self._writers:
                stored = self.outputs[module][:calls]
                forwards[module] = self._replaying_forward(stored, module.forward, copies)
        return patch_forward(forwards)

    def _replaying_forward(
        self, outputs: list[Any], forward: Callable[..., Any], copies: int
    ) -> Callable[..., Any]:
        """A forward that returns the stored outputs in turn.

        A call after them (the tower's next pass) may depend on the probe, and is computed.
        """
        remaining = iter(outputs)

        def replay(*arguments: Any, **keywords: Any) -> Any:
            stored = next(remaining, None)
            return forward(*arguments, **keywords) if stored is None else self._expand(stored, copies)

        return replay

    def _expand(self, output: Any, copies: int) -> Any:
        """Repeat a block's hidden states, and whatever else in its output has one entry per sample.

        A mask or bias that all samples share stays as it is.
        """
        if isinstance(output, Tensor):
            return repeat(output, copies)
        hidden, *rest = output
        return type(output)((repeat(hidden, copies), *(self._expand_rest(item, copies) for item in rest)))

    def _expand_rest(self, item: Any, copies: int) -> Any:
        if isinstance(item, Tensor):
            return repeat(item, copies) if item.ndim > 2 and item.shape[0] == self.samples else item
        if isinstance(item, tuple | list):
            return type(item)(self._expand_rest(inner, copies) for inner in item)
        return item
