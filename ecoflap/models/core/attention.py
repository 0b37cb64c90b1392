"""``nn.MultiheadAttention`` with its projections as modules, so that packed weights are layers like others.

PyTorch passes the weights of the whole attention to one function, where no hook sees the inputs of a
projection. The subclass here computes the same step by step. It replaces the class of existing modules in
place; parameters keep their names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

PACKED = "in_proj_weight"
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class Projection(nn.Module):
    """One input projection of an attention. It owns no parameter: ``weight`` is the attention's."""

    def __init__(self, attention: nn.MultiheadAttention, parameter: str, rows: slice) -> None:
        super().__init__()
        self.parameter, self.rows = parameter, rows
        self.owner = (attention,)  # in a tuple, or it would become a submodule, and a cycle

    @property
    def weight(self) -> nn.Parameter:
        """The attention's parameter, [rows, cols]."""
        weight: nn.Parameter = getattr(self.owner[0], self.parameter)
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Project inputs [..., cols] to [..., rows]."""
        bias = self.owner[0].in_proj_bias
        return linear(inputs, self.weight, None if bias is None else bias[self.rows])


class OpenAttention(nn.MultiheadAttention):
    """The same attention, computed so that every projection is called as a module."""

    def _get_name(self) -> str:
        """The name that is printed of it: the module is no other one than before."""
        return nn.MultiheadAttention.__name__

    @property
    def projections(self) -> dict[str, Projection]:
        """The projection of each parameter: one if the weights are packed, else three."""
        known: dict[str, Projection] | None = self.__dict__.get("_projections")
        if known is None:
            width = self.embed_dim
            if self._qkv_same_embed_dim:
                known = {PACKED: Projection(self, PACKED, slice(None))}
            else:
                known = {
                    name: Projection(self, name, slice(i * width, (i + 1) * width))
                    for i, name in enumerate(SEPARATE)
                }
            self.__dict__["_projections"] = known
        return known

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``.

        Packed weights that read different tensors (cross-attention) are left to PyTorch, and so are learned
        extra keys: such layers count as never called.
        """
        packed_apart = self._qkv_same_embed_dim and not (query is key and key is value)
        if packed_apart or self.bias_k is not None or self.add_zero_attn or query.dim() != 3:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        q, k, v = (self._heads(projected) for projected in self._project(query, key, value))
        mask = _merged_mask(attn_mask, key_padding_mask, len(q), self.num_heads, q.dtype)
        dropout = self.dropout if self.training else 0.0
        context = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=is_causal and mask is None)
        merged = context.transpose(1, 2).flatten(2)  # [batch, tokens, features]
        output: Tensor = self.out_proj(merged if self.batch_first else merged.transpose(0, 1))
        return output, _attention_weights(q, k, mask, average_attn_weights) if need_weights else None

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values in the layout of the inputs."""
        if self._qkv_same_embed_dim:
            return tuple(self.projections[PACKED](query).chunk(3, dim=-1))
        return tuple(
            self.projections[name](inputs) for name, inputs in zip(SEPARATE, (query, key, value), strict=True)
        )

    def _heads(self, projected: Tensor) -> Tensor:
        """A projection in the module's layout as [batch, heads, tokens, head features]."""
        first = projected if self.batch_first else projected.transpose(0, 1)
        return first.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _merged_mask(
    mask: Tensor | None, padding: Tensor | None, batch: int, heads: int, dtype: torch.dtype
) -> Tensor | None:
    """One additive mask that broadcasts to [batch, heads, queries, keys]."""
    merged = None
    if mask is not None:
        merged = _additive(mask, dtype)
        merged = merged.unflatten(0, (batch, heads)) if merged.dim() == 3 else merged[None, None]
    if padding is not None:
        keys = _additive(padding, dtype)[:, None, None, :]
        merged = keys if merged is None else merged + keys
    return merged


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True: masked out) as numbers to add to the attention logits."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, average: bool) -> Tensor:
    """Attention weights [batch, heads, queries, keys], or their mean over heads."""
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    weights = (logits if mask is None else logits + mask).softmax(dim=-1)
    return weights.mean(dim=1) if average else weights


def open_attention(module: nn.Module) -> None:
    """Make every attention of a model call its projections as modules, in place.

    ``nn.MultiheadAttention`` becomes an ``OpenAttention``. timm's EVA and BEiT have a switch for it; without
    it, their fused qkv is a function call.
    """
    children: list[Any] = list(module.modules())
    for child in children:
        if type(child) is nn.MultiheadAttention:
            child.__class__ = OpenAttention
        elif hasattr(child, "qkv_bias_separate"):
            child.qkv_bias_separate = True
