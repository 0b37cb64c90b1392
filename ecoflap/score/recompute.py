"""Activation checkpointing by block: keep the inputs of blocks, recompute the rest in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ecoflap.blocks.block_call import first_tensor
from ecoflap.blocks.containers import snapshot
from ecoflap.blocks.patch_forward import patch_forward
from ecoflap.blocks.standalone import close
from ecoflap.errors import UserError
from ecoflap.models.core.towers import Block


@contextmanager
def recomputing(blocks: Sequence[Block]) -> Iterator[None]:
    """Recompute the blocks' activations in the backward pass, which then holds those of one block at a time.

    This costs one more forward pass. The gradients are the same bit for bit: evaluation mode draws nothing at
    random, and a recomputed block reads copies of the containers among its arguments, made at the first call.

    Raises:
        UserError: if a recomputed block returns another output, because of state that other blocks change and
            that is not among its arguments.
    """
    # Read after the context, so that no backward pass waits for a comparison.
    agreements: list[tuple[Block, Tensor]] = []
    forwards = {block.module: _checkpointed(block, agreements) for block in blocks}
    # Without early stop, blocks are recomputed to the end, and their outputs can be compared.
    with patch_forward(forwards), set_checkpoint_early_stop(False):
        yield
    for block, agreement in agreements:
        if not agreement:
            raise UserError(
                f"{block.name} puts out something else when it is computed again in the backward pass,"
                " because of what other blocks or the model leave behind; use score.recompute=false, or in an"
                " allocation allocation.recompute=false, without runtime.offload, or score.probe=layer"
            )


def _checkpointed(block: Block, agreements: list[tuple[Block, Tensor]]) -> Callable[..., Any]:
    """A forward that runs again in the backward pass, and notes whether both outputs agree."""
    forward = block.module.forward

    def run(*arguments: Any, **keywords: Any) -> Any:
        recorded = snapshot((arguments, keywords))
        first_output: list[Tensor] = []  # takes no memory of its own, as it is the next block's input

        def compute(*arguments: Any, **keywords: Any) -> Any:
            if not first_output:
                output = forward(*arguments, **keywords)
                first_output.append(first_tensor(output).detach())
                return output
            arguments, keywords = snapshot(recorded)  # a copy, as there may be several backward passes
            output = forward(*arguments, **keywords)
            agreements.append((block, close(first_output[0], first_tensor(output).detach())))
            return output

        return checkpoint(compute, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords)

    return run
