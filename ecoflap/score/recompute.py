"""Block checkpointing: a backward pass that keeps the inputs of the blocks and computes what is inside a block again when its turn comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint

from ecoflap.models.towers import Block


@contextmanager
def recomputing(blocks: Sequence[Block]) -> Iterator[None]:
    """Let the blocks' activations be recomputed in the backward pass: one more forward pass, and the memory of one block instead of all.

    The numbers are the same bit for bit: nothing is drawn at random in evaluation mode.
    """
    own = {block.module: block.module.__dict__["forward"] for block in blocks if "forward" in block.module.__dict__}
    try:
        for block in blocks:
            block.module.forward = partial(checkpoint, block.module.forward, use_reentrant=False, preserve_rng_state=False)
        yield
    finally:
        for block in blocks:
            block.module.__dict__.pop("forward", None)
            if block.module in own:  # set on the instance by someone else, such as an offloader
                block.module.forward = own[block.module]
