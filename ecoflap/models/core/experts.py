"""Experts that share one parameter, as modules of their own, so that each of their matrices is a layer.

Since its fifth release, transformers stores the experts of a layer together: ``gate_up_proj`` [experts, 2 x
hidden units, features] and ``down_proj`` [experts, features, hidden units]. Its forward passes read these
parameters whole, where no hook sees what an expert reads. The forward passes here compute the same, expert by
expert, with a module that is called for each matrix. They replace those of existing modules in place;
parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize

SHARED_SINCE = 5  # release of transformers
OPENED = "_expert_slices"  # attribute of an opened module: {name of a parameter: slices}


class Routed(NamedTuple):
    """Which tokens an expert reads.

    Attributes:
        positions: of the tokens among all that enter the experts, [routed].
        tokens: how many enter the experts.
    """

    positions: Tensor
    tokens: int


class Opening(NamedTuple):
    """What turns experts into modules.

    Attributes:
        module: the module that holds the experts.
        forward: its forward pass from then on.
        slices: the slices of each of its parameters.
    """

    module: nn.Module
    forward: Callable[..., Tensor]
    slices: dict[str, list[ExpertSlice]]

    def apply(self) -> None:
        """Open the module, unless it is open."""
        if OPENED not in vars(self.module):
            vars(self.module)[OPENED] = self.slices
            # A partial, as a bound method is pickled by its name, which the class doesn't have.
            self.module.forward = partial(self.forward, self.module)  # type: ignore[method-assign]


class ExpertSlice(nn.Module):
    """One matrix of one expert. It owns no parameter: its weight is a view of the experts' parameter.

    Attributes:
        parameter: name of the parameter in the module that owns it.
        index: the expert's number.
        experts: number of experts in the parameter.
        transposed: whether the parameter stores [cols, rows].
        second: whether it reads its expert's hidden units, not tokens.
        opened: what opens the module that it was made for.
        routed: the tokens of the present call; None outside of one.
    """

    def __init__(
        self, owner: nn.Module, parameter: str, index: int, experts: int, transposed: bool, second: bool
    ) -> None:
        super().__init__()
        self.parameter, self.index, self.experts = parameter, index, experts
        self.transposed, self.second = transposed, second
        self.owner = (owner,)  # in a tuple, or it would become a submodule, and a cycle
        self.opened: tuple[Opening, ...] = ()
        self.routed: Routed | None = None

    @property
    def whole(self) -> nn.Parameter:
        """The parameter of all experts, [experts, ..., ...], or [experts x ..., ...] in DBRX."""
        whole: nn.Parameter = getattr(self.owner[0], self.parameter)
        return whole

    def part(self, tensor: Tensor) -> Tensor:
        """This expert's part of a tensor of the parameter's shape: a view, [rows, cols] as it is stored."""
        return tensor.view(self.experts, -1, tensor.shape[-1])[self.index]

    @property
    def weight(self) -> nn.Parameter:
        """A leaf with the memory of its part of the parameter: what is written to one is read in the other.

        It stays the same object while the parameter moves to another dtype or device.
        """
        part = self.part(self.whole.data)
        view: nn.Parameter | None = self.__dict__.get("_view")
        if view is None or view.is_meta != part.is_meta:
            view = self.__dict__["_view"] = nn.Parameter(part, requires_grad=False)
        elif _storage(view) != _storage(part):
            view.data = part
        return view

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply the tokens of this expert: [routed, cols] -> [routed, rows]."""
        bias = getattr(self.owner[0], f"{self.parameter}_bias", None)
        weight = self.weight.t() if self.transposed else self.weight
        output = linear(inputs, weight)
        return output if bias is None else output + bias[self.index]


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.stride()


def slices_of(module: nn.Module) -> dict[str, ExpertSlice]:
    """The slices of opened experts by parameter and number of the expert, such as ``down_proj.3``."""
    opened: dict[str, list[ExpertSlice]] = vars(module).get(OPENED, {})
    return {f"{name}.{one.index}": one for name, slices in opened.items() for one in slices}


def all_slices(module: nn.Module) -> Iterator[ExpertSlice]:
    """The slices of all opened experts in a module."""
    for child in module.modules():
        yield from slices_of(child).values()


def refresh(module: nn.Module) -> None:
    """Let all slices follow their parameters now, so that none keeps memory that a parameter has left."""
    for one in all_slices(module):
        _ = one.weight


def reads_choices(module: nn.Module) -> bool:
    """Whether opened experts read tokens, the experts of each and their weights: transformers' interface."""
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is _interface


def open_experts(module: nn.Module, again: bool = False) -> None:
    """Make experts that share a parameter call a module for each of their matrices, in place.

    These are the classes of transformers that compute through its interface for experts, and those of
    Llama 4, DBRX, LongCat-Flash and JetMoE. Before its fifth release, nearly all experts are modules already,
    and nothing is done.

    Args:
        module: the model, or a part of it.
        again: whether open experts get new slices, for parameters of other shapes.
    """
    if int(transformers.__version__.split(".")[0]) < SHARED_SINCE:
        return
    for child in list(module.modules()):
        if again and vars(child).pop(OPENED, None) is not None:
            del child.forward
        if OPENED not in vars(child) and (found := _opening(child)) is not None:
            opening = Opening(child, *found)
            for one in chain(*opening.slices.values()):
                one.opened = (opening,)
            opening.apply()


def reopen(slices: Iterable[ExpertSlice]) -> None:
    """Open the experts that slices were made for again, where their modules have been restored since."""
    for one in slices:
        for opening in one.opened:
            opening.apply()


def _opening(module: Any) -> tuple[Callable[..., Any], dict[str, list[ExpertSlice]]] | None:
    """The forward pass that opens a module, and its slices; None if no experts of it share a parameter."""
    kind, both = type(module).__name__, ("gate_up_proj", "down_proj")
    if kind == "Llama4TextExperts":
        return _llama4, _slices(module, both, module.num_experts, (True, True))
    if kind == "DbrxExperts":
        slices = _slices(module.mlp, ("w1", "v1", "w2"), module.num_experts, (False, False, True))
        return _dbrx, {f"mlp.{name}": found for name, found in slices.items()}
    if kind == "LongcatFlashExperts" and module.gate_up_proj is not None:
        return _longcat, _slices(module, both, module.num_routed_experts, (False, False))
    if kind.endswith("ParallelExperts"):
        return _parallel, _slices(module, ("weight",), module.num_experts, (False,))
    if not hasattr(module, "_apply_gate"):
        return None
    names = ("gate_up_proj" if getattr(module, "has_gate", True) else "up_proj", "down_proj")
    if any(getattr(module, name, None) is None or getattr(module, name).ndim != 3 for name in names):
        return None
    transposed = getattr(module, "is_transposed", False)
    return _interface, _slices(module, names, module.num_experts, (transposed, transposed))


def _slices(
    owner: nn.Module, names: Sequence[str], experts: int, transposed: Sequence[bool]
) -> dict[str, list[ExpertSlice]]:
    """The slices of some parameters, of which the last one reads hidden units."""
    found: dict[str, list[ExpertSlice]] = {}
    for name, flag in zip(names, transposed, strict=True):
        shape = getattr(owner, name).shape
        parts = shape[0] if len(shape) == 3 else experts
        found[name] = [
            ExpertSlice(owner, name, index, parts, flag, name == names[-1]) for index in range(experts)
        ]
    return found


def _are_trained(module: nn.Module) -> bool:
    """Whether gradients must reach the parameters themselves, which slices would keep them from."""
    opened: dict[str, list[ExpertSlice]] = vars(module)[OPENED]
    for first, *_ in opened.values():
        if parametrize.is_parametrized(first.owner[0], first.parameter):
            return True
        if torch.is_grad_enabled() and first.whole.requires_grad:
            return True
    return False


def _call(one: ExpertSlice, inputs: Tensor, routed: Routed) -> Tensor:
    """Call the module of a matrix with the tokens that reach its expert."""
    one.routed = routed
    try:
        output: Tensor = one(inputs)
    finally:
        one.routed = None
    return output


def _routes(top_k_index: Tensor, experts: int) -> Iterator[tuple[int, Tensor, Routed]]:
    """The experts that any token reaches.

    Args:
        top_k_index: the experts of each token, [tokens, top_k]; a number that no expert has is none.
        experts: number of experts.

    Yields:
        The expert, which of each token's choices it is, [routed], and the tokens.
    """
    chosen = top_k_index.t()  # choices outermost, the order in which transformers adds up
    for expert in torch.unique(top_k_index).tolist():
        if 0 <= expert < experts:
            choice, positions = torch.where(chosen == expert)
            yield expert, choice, Routed(positions, len(top_k_index))


def _weighted_sum(
    module: Any, hidden: Tensor, weights: Tensor, down: list[ExpertSlice], inner: list[tuple[Any, ...]]
) -> Tensor:
    """Apply the second matrix of each expert, and add up the outputs with the router's weights.

    Args:
        module: the experts.
        hidden: what the experts read, [tokens, features].
        weights: of each token's choices, [tokens, top_k].
        down: the second matrices.
        inner: the expert, the choices, the tokens, and the hidden units [routed, units] of each expert.
    """
    outputs = []
    for expert, choice, routed, units in inner:
        output = _call(down[expert], units, routed)
        if getattr(module, "has_post_expert_norm", False):
            output = module.post_expert_norm(output)
        outputs.append((routed.positions, output * weights[routed.positions, choice, None]))
    wide = torch.promote_types(hidden.dtype, weights.dtype)
    total = torch.zeros_like(hidden, dtype=wide)
    for positions, output in outputs:
        total.index_add_(0, positions, output.to(wide))
    return total.to(hidden.dtype)


def _interface(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward pass of transformers' interface for experts: [tokens, features] -> the same."""
    if _are_trained(self):
        return type(self).forward(self, hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
    act = self._apply_gate if getattr(self, "has_gate", True) else self.act_fn
    return _mixed(self, hidden_states, top_k_index, top_k_weights, act)


def _mixed(
    module: Any, hidden: Tensor, index: Tensor, weights: Tensor, act: Callable[[Tensor], Tensor]
) -> Tensor:
    """Experts of two matrices with ``act`` in between.

    All first matrices are called before all second ones, so that the former can be pruned together.
    """
    first, down = vars(module)[OPENED].values()
    inner = [
        (expert, choice, routed, act(_call(first[expert], hidden[routed.positions], routed)))
        for expert, choice, routed in _routes(index, len(first))
    ]
    return _weighted_sum(module, hidden, weights, down, inner)


def _longcat(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward pass of LongCat-Flash's experts, of which the last ones return what they read."""
    if _are_trained(self):
        return type(self).forward(self, hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]

    def act(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up  # type: ignore[no-any-return]

    same = (top_k_weights * (top_k_index >= self.num_routed_experts)).sum(dim=-1, keepdim=True)
    mixed = _mixed(self, hidden_states, top_k_index, top_k_weights, act)
    return mixed + (same * hidden_states).to(mixed.dtype)


def _parallel(self: Any, inputs: Tensor, expert_size: Sequence[int]) -> Tensor:
    """The forward pass of JetMoE's experts: tokens [routed, cols], sorted by expert -> [routed, rows]."""
    if _are_trained(self):
        return type(self).forward(self, inputs, expert_size)  # type: ignore[no-any-return]
    (slices,) = vars(self)[OPENED].values()
    parts = zip(slices, inputs.split(list(expert_size)), strict=True)
    return torch.cat([one(part) if len(part) else part.new_zeros(0, len(one.weight)) for one, part in parts])


def _dbrx(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward pass of DBRX's experts: [batch, tokens, features] -> the same."""
    if _are_trained(self):
        return type(self).forward(self, hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
    w1, v1, w2 = vars(self)[OPENED].values()
    tokens, inner = hidden_states.reshape(-1, self.hidden_size), []
    for expert, choice, routed in _routes(top_k_index, self.num_experts):
        read = tokens[routed.positions]
        gate, up = _call(w1[expert], read, routed), _call(v1[expert], read, routed)
        inner.append((expert, choice, routed, self.mlp.activation_fn(gate) * up))
    return _weighted_sum(self, tokens, top_k_weights, w2, inner).view_as(hidden_states)


def _llama4(self: Any, hidden_states: Tensor) -> Tensor:
    """The forward pass of Llama 4's experts: [experts x tokens, features] -> the same.

    Each expert is given all tokens, those of other experts as zeros, and puts out zeros for them.
    """
    if _are_trained(self):
        return type(self).forward(self, hidden_states)  # type: ignore[no-any-return]
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
