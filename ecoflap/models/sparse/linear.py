"""A linear layer that stores only the weights that are not zero, and multiplies a few tokens with them."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from ecoflap.errors import UserError
from ecoflap.models.sparse.library import BLOCK, COLUMNS, FEW_TOKENS, PADDING, products

CPU = torch.device("cpu")

PART = 2**22
"""Bytes of the dense matrix that are made at a time: small beside a model, enough for a fast product."""


class SparseLinear(nn.Module):
    """``nn.Linear`` on the CPU, with a bit per weight and the values that are not zero.

    The product reads only what is stored. For many tokens, as of a prompt, in bf16 with AVX-512 some rows
    of the dense matrix are made at a time. Gradients reach the inputs, and neither weight nor bias. The
    state dict is the dense layer's, with zeros for negative zeros. ``torch.compile`` calls the layer as it
    is, between the graphs that it compiles.

    Attributes:
        mask: a bit per weight, uint8 [rows, bytes]; the first weight is the lowest bit.
        values: [kept], and zeros behind them.
        starts: where the values of each row begin, int64 [rows].
        bias: [rows], or None.
    """

    mask: Tensor
    values: Tensor
    starts: Tensor

    def __init__(self, dense: nn.Linear) -> None:
        """Keep what is not zero of a layer on the CPU.

        Raises:
            UserError: if this machine has no product for its dtype.
        """
        super().__init__()
        weight = dense.weight.detach()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.dtype = weight.dtype
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach(), requires_grad=False)
        self._padding = -self.in_features % COLUMNS
        products(weight.dtype)
        nonzero = weight != 0
        there = np.pad(nonzero.numpy(), ((0, 0), (0, self._padding)))
        ends = np.count_nonzero(there, axis=1).cumsum()
        values = torch.zeros(int(ends[-1]) + PADDING // weight.itemsize, dtype=weight.dtype, device=CPU)
        values[: ends[-1]] = weight[nonzero]
        stored = {
            "mask": torch.from_numpy(np.packbits(there, axis=1, bitorder="little")),
            "values": values,
            "starts": torch.from_numpy(np.concatenate([[0], ends[:-1]])),
        }
        for name, tensor in stored.items():
            self.register_buffer(name, tensor, persistent=False)
        self.train(dense.training)

    @property
    def weight(self) -> Tensor:
        """The dense matrix [rows, cols], made anew each time: writing to it doesn't change the layer."""
        return self._made(0, self.out_features)

    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        """[..., cols] -> [..., rows].

        Raises:
            UserError: if the call is traced or exported, which can't record the product.
        """
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            raise UserError("sparse layers can't be traced or exported; load the model with sparse=False")
        inputs = input  # by the name that ``nn.Linear`` gives it
        fits = inputs.shape[-1] == self.in_features and inputs.dtype == self.dtype and inputs.device == CPU
        if not fits:
            return linear(inputs, self.weight, self.bias)  # it says what is wrong
        found: Tensor = _Product.apply(inputs, self)
        return found

    def multiplied(self, inputs: Tensor) -> Tensor:
        """As ``forward``, for inputs that fit, and without derivatives."""
        tokens = inputs.numel() // self.in_features
        return self._product(inputs, tokens) if self._takes(inputs, tokens) else self._in_parts(inputs)

    def _takes(self, inputs: Tensor, tokens: int) -> bool:
        """Whether a product is written for so many tokens. For many, it skips zeros times infinity, too."""
        if tokens <= FEW_TOKENS:
            return tokens > 0
        return products(self.dtype).many and isfinite(inputs.sum())

    def _in_parts(self, inputs: Tensor) -> Tensor:
        """The product with some rows of the dense matrix at a time."""
        rows = inputs.reshape(-1, self.in_features)
        out = inputs.new_empty(len(rows), self.out_features)
        step = max(PART // (self.dtype.itemsize * self.in_features), 1)
        for start in range(0, self.out_features, step):
            stop = min(start + step, self.out_features)
            weight, part = self._made(start, stop).T, out[:, start:stop]
            if self.bias is None:
                torch.mm(rows, weight, out=part)
            else:
                torch.addmm(self.bias.detach()[start:stop], rows, weight, out=part)
        return out.view(*inputs.shape[:-1], self.out_features)

    def _product(self, inputs: Tensor, tokens: int) -> Tensor:
        ours = products(self.dtype)
        inputs = inputs.to(ours.inputs)
        padded = pad(inputs, (0, self._padding)).contiguous()  # padding keeps other strides
        # The C code writes floats, whatever torch's default dtype and device are.
        sums = torch.empty(*inputs.shape[:-1], self.out_features, dtype=torch.float32, device=CPU)
        work = padded.shape[-1] * BLOCK if tokens > FEW_TOKENS else 0
        columns = torch.empty(work, dtype=torch.float32, device=CPU)
        ours.product(
            self.mask.data_ptr(),
            self.values.data_ptr(),
            self.starts.data_ptr(),
            padded.data_ptr(),
            sums.data_ptr(),
            columns.data_ptr(),
            self.out_features,
            self.in_features + self._padding,
            tokens,
        )
        if self.bias is not None:
            sums += self.bias.detach()
        return sums.to(self.dtype)

    @torch.compiler.disable
    def _made(self, start: int, stop: int) -> Tensor:
        """Rows of the dense matrix, [stop - start, cols]."""
        out = torch.empty(stop - start, self.in_features, dtype=self.dtype, device=CPU)
        products(self.dtype).dense(
            self.mask[start:].data_ptr(),
            self.values.data_ptr(),
            self.starts[start:].data_ptr(),
            out.data_ptr(),
            stop - start,
            self.in_features + self._padding,
            self.in_features,
        )
        return out

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SparseLinear:
        """Refuse what ``to`` and its like would do to the stored weights, which then stay as they are.

        Raises:
            UserError: if the weights would get another dtype or device.
        """
        made = fn(self.values[:0])  # before anything is changed
        if made.dtype != self.dtype or made.device.type != "cpu":
            raise UserError(
                f"sparse layers of {self.dtype} on the CPU can't become {made.dtype} on {made.device}; load"
                " the model with sparse=False, since other parts of this one may have been converted"
            )
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        """Refuse weights for stored ones.

        Raises:
            UserError: in any case.
        """
        raise UserError(
            "sparse layers don't read state dicts; save the model with save_pretrained or ecoflap.save, and"
            " load that with ecoflap.load_pruned"
        )

    def extra_repr(self) -> str:
        """Shape and zeros, for ``print(model)``."""
        kept = self.values.numel() - PADDING // self.dtype.itemsize
        share = 1 - kept / (self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, sparsity={share:.2f}"


class _Product(torch.autograd.Function):
    """The product of a sparse layer, with its derivatives by its inputs."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: SparseLinear) -> Tensor:
        ctx.layer = layer
        return layer.multiplied(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent @ ctx.layer.weight.T
