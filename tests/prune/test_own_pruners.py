"""Mistakes in pruners and statistics of the user's own are named, and change nothing silently."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.errors import NumericalError, UserError
from ecoflap.ops import Keep
from ecoflap.prune.by_metric import ByMetric
from ecoflap.prune.driver import prune
from ecoflap.prune.protocol import LayerPruner, Pruned
from ecoflap.run.plan.parts import require_members
from tests import tiny

from .test_families import uniform


def wanda(weight: Tensor, statistic: MeanSquare) -> Tensor:
    return weight.float().abs() * statistic.value.sqrt()


@dataclass(frozen=True)
class Own(ByMetric):
    """Wanda with a metric of the user's own."""

    mask: str = "row"
    compute: Callable[[Tensor, Any], Any] = wanda
    of: type[Statistic] = MeanSquare
    name: str = "own"

    @property
    def statistic(self) -> type[Statistic]:
        return self.of

    def metric(self, weight: Tensor, statistic: Statistic | None) -> Tensor:
        found: Tensor = self.compute(weight, statistic)
        return found


@dataclass(frozen=True)
class Returning(LayerPruner):
    """Returns something else than a pruned weight."""

    result: Any = field(default=None)
    name: str = "returning"

    def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
        found: Pruned = self.result
        return found


class Writing(MeanSquare):
    """Squares its inputs in place."""

    storable: ClassVar[bool] = False

    def update(self, inputs: Tensor) -> None:
        self.sum = self.sum + inputs.float().square_().sum(dim=0).double()
        self.tokens += len(inputs)


class WithoutEnergy(Statistic):
    """Lacks what the errors of layers are measured in."""

    def __init__(self, cols: int, device: torch.device) -> None:
        self.device, self.tokens, self.sum = device, 0, torch.zeros(cols, dtype=torch.float64)

    def update(self, inputs: Tensor) -> None:
        self.tokens += len(inputs)


def pruned(pruner: LayerPruner, propagate: str = "pruned") -> None:
    model = tiny.build("llama")
    prune(model, tiny.samples("llama"), pruner, uniform(model), 2, propagate=propagate)


def test_a_bug_in_a_metric_keeps_its_traceback() -> None:
    """Python's own ValueError is not mistaken for a refusal of the selection."""

    def unpacking(weight: Tensor, _: MeanSquare) -> Tensor:
        rows, _cols = (*weight.shape, 1)
        return weight.float() + rows

    with pytest.raises(ValueError, match="too many values to unpack") as caught:
        pruned(Own(compute=unpacking))
    assert caught.traceback[-1].name == "unpacking"
    with pytest.raises(NumericalError, match=r"q_proj\.weight: 256 of 256 scores are NaN"):
        pruned(Own(compute=lambda weight, _: weight * float("nan")))


@pytest.mark.parametrize(("result", "kind"), [(None, "NoneType"), ((torch.ones(1), torch.ones(1)), "tuple")])
def test_a_pruner_that_returns_something_else_is_refused(result: Any, kind: str) -> None:
    with pytest.raises(UserError, match=rf"pruner=returning returned a {kind} for .*q_proj\.weight; correct"):
        pruned(Returning(result))


@pytest.mark.parametrize(
    ("compute", "found"),
    [
        (lambda *_: None, "NoneType"),
        (lambda weight, _: weight.numpy(), "ndarray"),
        (lambda weight, _: weight > 0, "a tensor [16, 16] of torch.bool"),
        (lambda weight, _: weight.mean(dim=0, keepdim=True), "a tensor [1, 16] of torch.float32"),
    ],
)
def test_a_metric_of_another_form_is_refused(compute: Callable[..., Any], found: str) -> None:
    message = re.escape(f"pruner=own returned {found} as the metric of a weight [16, 16]; correct")
    with pytest.raises(UserError, match=message):
        pruned(Own(compute=compute))


def test_a_metric_that_changes_the_weight_is_refused() -> None:
    """Of a weight in fp32, ``float()`` is no copy; the kept weights lost their signs."""
    with pytest.raises(UserError, match="pruner=own changed the weight that its metric is of"):
        pruned(Own(compute=lambda weight, _: weight.float().abs_()))


@pytest.mark.parametrize("propagate", ["pruned", "dense", "layer"])
def test_a_statistic_that_changes_the_inputs_is_refused(propagate: str) -> None:
    """The model went on with them: all later masks were those of another model."""
    with pytest.raises(UserError, match=r"Writing.update changed the inputs of .*q_proj\.weight"):
        pruned(Own(of=Writing), propagate)


def test_a_statistic_without_a_method_is_refused_before_a_model_is_read() -> None:
    with pytest.raises(UserError, match="WithoutEnergy of pruner=own has no output_energy of its own"):
        require_members("pruner", Own(of=WithoutEnergy), "pruner._target_=own.Own")
