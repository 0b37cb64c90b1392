"""Find the hidden states that a block adds the outputs of its layers to.

An attention's output projection and an MLP's second matrix write into the residual stream: what the block
reads next, or puts out, is the stream as it was plus the layer's output. One run of a block shows which
tensors those are: the input of some module plus the output of the layer is, to the bit, the input of a later
module or the output of the block. A layer whose output is scaled or gated on the way has no such stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.blocks.block_call import first_tensor
from ecoflap.blocks.containers import version_of
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Block


class ResidualStreams:
    """Learns from runs of a block which of its layers write into a residual stream.

    Attributes:
        read_by: for each such layer a module whose input is the stream as it was; the block itself for the
            block's input.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.read_by: dict[Layer, nn.Module] = {}
        self._read: list[tuple[nn.Module, Tensor, int]] = []  # with the tensor's version, in call order
        self._written: list[tuple[Layer, Tensor, int]] = []  # outputs, and how many tensors were read before

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Learn from the run of the block in this context."""
        module = self.block.module
        wrote = (
            layer.module.register_forward_hook(partial(self._wrote, layer))
            for layer in self.block.layers
            if not layer.is_routed
        )
        with (
            hooks(wrote),
            module.register_forward_hook(self._ended),
            inputs_noted(module.modules(), self._note),
        ):
            yield
        self._match()

    def _note(self, module: nn.Module, tensor: Tensor) -> None:
        self._read.append((module, tensor, version_of(tensor)))

    def _wrote(self, layer: Layer, _: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._written.append((layer, output, len(self._read)))

    def _ended(self, module: nn.Module, _: Any, output: Any) -> None:
        self._note(module, first_tensor(output))

    @torch.no_grad()
    def _match(self) -> None:
        """Find the streams of all outputs, and forget the tensors."""
        calls = Counter(module for module, _, _ in self._read)
        for layer, output, before in self._written:
            if not output.any():  # it could be added to anything
                continue
            later = [_rows_of(tensor) for _, tensor, _ in self._read[before:] if _alike(tensor, output)]
            for module, stream, version in self._read[:before]:
                # The block itself reads once, and puts out once.
                if calls[module] > (2 if module is self.block.module else 1) or not _alike(stream, output):
                    continue
                if version_of(stream) != version:  # written to since the module has read it
                    continue
                total = _rows_of(stream) + _rows_of(output)
                if any(torch.equal(total, tensor) for tensor in later):
                    self.read_by[layer] = module
                    break
        self._read, self._written = [], []


def inputs_noted(
    modules: Iterable[nn.Module], note: Callable[[nn.Module, Tensor], None]
) -> AbstractContextManager[None]:
    """Pass the first tensor that each call of the modules reads to ``note``, in this context.

    Hooks that are registered inside the context find it noted.
    """

    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tensors = (value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor))
        if (tensor := next(tensors, None)) is not None:
            note(module, tensor)

    return hooks(module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold as many features of as many tokens, and can be added."""
    shapes = one.shape[-1:] == other.shape[-1:] and one.numel() == other.numel()
    return shapes and one.dtype == other.dtype and one.device == other.device


def _rows_of(tensor: Tensor) -> Tensor:
    """The features of all tokens, [tokens, features]."""
    return tensor.reshape(-1, tensor.shape[-1])
