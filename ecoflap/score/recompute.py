"""Block checkpointing: a backward pass that keeps the inputs of the blocks and computes what is inside a block again when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.checkpoint import checkpoint

from ecoflap.calibrate.containers import detached
from ecoflap.calibrate.forwards import with_forwards
from ecoflap.models.towers import Block


def recomputing(blocks: Sequence[Block]) -> AbstractContextManager[None]:
    """Let the blocks' activations be recomputed in the backward pass: one more forward pass, and the memory of one block instead of all.

    The numbers are the same bit for bit: nothing is drawn at random in evaluation mode, and what a block computes again it reads from copies of
    the containers that it was handed, as they were then.
    """
    return with_forwards({block.module: _checkpointed(block.module.forward) for block in blocks})


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that runs once now and once more in the backward pass."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        entered, first = detached((arguments, keywords)), True

        def compute(*arguments: Any, **keywords: Any) -> Any:
            nonlocal first
            if first:
                first = False
                return forward(*arguments, **keywords)
            again, named = detached(entered)  # a backward pass may compute a block more than once
            return forward(*again, **named)

        return checkpoint(compute, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords)

    return run
