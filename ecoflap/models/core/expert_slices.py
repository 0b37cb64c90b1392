"""The matrices of experts that share one parameter, as modules of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from ecoflap.models.core.experts import Opening

OPENED = "_expert_slices"  # attribute of an opened module: {name of a parameter: slices}


class Routed(NamedTuple):
    """Which tokens an expert reads.

    Attributes:
        positions: of the tokens among all that enter the experts, [routed].
        tokens: how many enter the experts.
    """

    positions: Tensor
    tokens: int


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

    @property
    def is_cut(self) -> bool:
        """Whether experts were removed from the parameter since, so that this is a part of it no longer."""
        return self.whole.ndim == 3 and len(self.whole) != self.experts

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

    def release(self) -> None:
        """Keep no memory of the parameter; the next look at the weight makes another leaf."""
        self.__dict__.pop("_view", None)

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
