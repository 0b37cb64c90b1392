"""Forward passes of opened experts: those of transformers, with a module that is called for each matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ecoflap.models.core.expert_slices import OPENED, ExpertSlice, Routed


def _call(one: ExpertSlice, inputs: Tensor, routed: Routed) -> Tensor:
    """Call the module of a matrix with the tokens that reach its expert."""
    one.routed = routed
    try:
        output: Tensor = one(inputs)
    finally:
        one.routed = None
    return output


def _routes(top_k_index: Tensor, weights: Tensor, experts: int) -> Iterator[tuple[int, Tensor, Routed]]:
    """The experts that any token reaches.

    Args:
        top_k_index: the experts of each token, [tokens, top_k]; a number that no expert has is none.
        weights: of these choices; 0 is none, as for tokens that LongCat-Flash's experts don't read.
        experts: number of experts.

    Yields:
        The expert, which of each token's choices it is, [routed], and the tokens.
    """
    reached = top_k_index.masked_fill(weights == 0, experts)
    chosen = reached.t()  # choices outermost, the order in which transformers adds up
    for expert in torch.unique(reached).tolist():
        if 0 <= expert < experts:
            choice, positions = torch.where(chosen == expert)
            yield expert, choice, Routed(positions, len(top_k_index))


Norm = Callable[[Tensor, int], Tensor]
"""What is applied to the output of an expert, [routed, features], and the number of the expert."""


def _weighted_sum(
    hidden: Tensor,
    weights: Tensor,
    down: list[ExpertSlice],
    inner: list[tuple[Any, ...]],
    norm: Norm | None = None,
) -> Tensor:
    """Apply the second matrix of each expert, and add up the outputs with the router's weights.

    Args:
        hidden: what the experts read, [tokens, features].
        weights: of each token's choices, [tokens, top_k].
        down: the second matrices.
        inner: the expert, the choices, the tokens, and the hidden units [routed, units] of each expert.
        norm: applied to the output of each expert.
    """
    outputs = []
    for expert, choice, routed, units in inner:
        output = _call(down[expert], units, routed)
        if norm is not None:
            output = norm(output, expert)
        outputs.append((routed.positions, output * weights[routed.positions, choice, None]))
    wide = torch.promote_types(hidden.dtype, weights.dtype)
    total = torch.zeros_like(hidden, dtype=wide)
    for positions, output in outputs:
        total.index_add_(0, positions, output.to(wide))
    return total.to(hidden.dtype)


def interface(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward pass of transformers' interface for experts: [tokens, features] -> the same."""
    act = self._apply_gate if getattr(self, "has_gate", True) else self.act_fn
    norm: Norm | None = None
    if getattr(self, "has_post_expert_norm", False):

        def norm(output: Tensor, _: int) -> Tensor:
            return self.post_expert_norm(output)  # type: ignore[no-any-return]

    return _mixed(self, hidden_states, top_k_index, top_k_weights, act, norm)


def ergo(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward pass of Ergo's experts, each of which has a norm of its own for its output."""

    def norm(output: Tensor, expert: int) -> Tensor:
        numbers = torch.full((len(output),), expert, device=output.device)
        return self.post_expert_norm(output, numbers)  # type: ignore[no-any-return]

    return _mixed(self, hidden_states, top_k_index, top_k_weights, self.act_fn, norm)


def _mixed(
    module: Any,
    hidden: Tensor,
    index: Tensor,
    weights: Tensor,
    act: Callable[[Tensor], Tensor],
    norm: Norm | None = None,
) -> Tensor:
    """Experts of two matrices with ``act`` in between.

    All first matrices are called before all second ones, so that the former can be pruned together.
    """
    first, down = vars(module)[OPENED].values()
    inner = [
        (expert, choice, routed, act(_call(first[expert], hidden[routed.positions], routed)))
        for expert, choice, routed in _routes(index, weights, len(first))
    ]
    return _weighted_sum(hidden, weights, down, inner, norm)


def longcat(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward pass of LongCat-Flash's experts until 5.24; the last ones return what they read."""

    def act(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up  # type: ignore[no-any-return]

    same = (top_k_weights * (top_k_index >= self.num_routed_experts)).sum(dim=-1, keepdim=True)
    mixed = _mixed(self, hidden_states, top_k_index, top_k_weights, act)
    return mixed + (same * hidden_states).to(mixed.dtype)


def parallel(self: Any, inputs: Tensor, expert_size: Sequence[int]) -> Tensor:
    """The forward pass of JetMoE's experts: tokens [routed, cols], sorted by expert -> [routed, rows]."""
    (slices,) = vars(self)[OPENED].values()
    parts = zip(slices, inputs.split(list(expert_size)), strict=True)
    return torch.cat([one(part) if len(part) else part.new_zeros(0, len(one.weight)) for one, part in parts])


def dbrx(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward pass of DBRX's experts: [batch, tokens, features] -> the same."""
    w1, v1, w2 = vars(self)[OPENED].values()
    tokens, inner = hidden_states.reshape(-1, self.hidden_size), []
    for expert, choice, routed in _routes(top_k_index, top_k_weights, self.num_experts):
        read = tokens[routed.positions]
        gate, up = _call(w1[expert], read, routed), _call(v1[expert], read, routed)
        inner.append((expert, choice, routed, self.mlp.activation_fn(gate) * up))
    return _weighted_sum(tokens, top_k_weights, w2, inner).view_as(hidden_states)


def llama4(self: Any, hidden_states: Tensor) -> Tensor:
    """The forward pass of Llama 4's experts: [experts x tokens, features] -> the same.

    Each expert is given all tokens, those of other experts as zeros, and puts out zeros for them.
    """
    first, down = vars(self)[OPENED].values()
    given = hidden_states.view(self.num_experts, -1, self.hidden_size)
    output, inner = torch.zeros_like(given), []
    for expert, tokens in enumerate(given):
        positions = tokens.any(dim=-1).nonzero().flatten()
        if len(positions):
            routed = Routed(positions, len(tokens))
            gate, up = _call(first[expert], tokens[positions], routed).chunk(2, dim=-1)
            inner.append((expert, routed, up * self.act_fn(gate)))
    for expert, routed, units in inner:
        output[expert, routed.positions] = _call(down[expert], units, routed)
    return output.view(-1, self.hidden_size)
