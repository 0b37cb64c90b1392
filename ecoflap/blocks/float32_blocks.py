"""Run a half-precision model in fp32, with the memory of one block in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ecoflap.models.core.forward_modes import in_float32
from ecoflap.models.core.prunable import PrunableModel


@contextmanager
def block_by_block_in_float32(model: PrunableModel) -> Iterator[None]:
    """Hold each block in fp32 while it runs in this context, and what is outside blocks throughout.

    An offloaded model loads its blocks one by one as it is. A model that uses the weights of a block outside
    its call fails, as they are in half precision there.
    """
    stays = model.placement.kind == "none"
    blocks = dict.fromkeys(block.module for block in model.blocks) if stays else {}
    wide: dict[nn.Module, ExitStack] = {}

    def enter(module: nn.Module, _: Any) -> None:
        wide[module].enter_context(in_float32(module))

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        wide[module].close()

    with ExitStack() as stack:
        stack.enter_context(in_float32(model.module, blocks))
        for block in blocks:
            wide[block] = stack.enter_context(ExitStack())
            stack.callback(block.register_forward_pre_hook(enter).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        yield
