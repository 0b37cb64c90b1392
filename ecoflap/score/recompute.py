"""Block checkpointing: a backward pass that keeps the inputs of the blocks and computes what is inside a
block again when its turn comes.
"""

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
    """Let the blocks' activations be recomputed in the backward pass: a forward pass more, the memory of one
    block.

    The numbers are the same bit for bit: nothing is drawn at random in evaluation mode, and a block reads the
    containers that it was handed as they were the first time, from copies.

    Raises:
        UserError: a block puts out something else the second time, because of what others change in ways that
            no argument shows.
    """
    agreements: list[
        tuple[Block, Tensor]
    ] = []  # read when all is done, so that no backward pass waits for them
    forwards = {block.module: _checkpointed(block, agreements) for block in blocks}
    with patch_forward(forwards), set_checkpoint_early_stop(False):  # to the end, to compare the outputs
        yield
    for block, agreement in agreements:
        if not agreement:
            raise UserError(
                f"{block.name} puts out something else when it is computed again in the backward pass,"
                " because of what other blocks leave behind; use score.recompute=false without"
                " runtime.offload, or score.probe=layer"
            )


def _checkpointed(block: Block, agreements: list[tuple[Block, Tensor]]) -> Callable[..., Any]:
    """A forward that runs once now and once more in the backward pass, and whether both put out the same."""
    forward = block.module.forward

    def run(*arguments: Any, **keywords: Any) -> Any:
        entered = snapshot((arguments, keywords))
        kept: list[Tensor] = []

        def compute(*arguments: Any, **keywords: Any) -> Any:
            if not kept:
                output = forward(*arguments, **keywords)
                kept.append(first_tensor(output).detach())  # kept in any case, as the input of the next block
                return output
            again, named = snapshot(entered)  # there may be more than one backward pass
            output = forward(*again, **named)
            agreements.append((block, close(kept[0], first_tensor(output).detach())))
            return output

        return checkpoint(compute, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords)

    return run
