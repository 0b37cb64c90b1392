"""What an allocator returns is checked before anything is pruned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.protocol import Allocator, Context, Requires, checked_allocation
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.api.pruning import prune
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.magnitude import Magnitude
from ecoflap.run.plan.preflight import check_model
from ecoflap.score.scores import Scores
from tests import tiny

pytestmark = pytest.mark.any_release

FIRST, SECOND = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk")


@dataclass(frozen=True)
class Changed(Allocator):
    """The uniform allocation, changed."""

    change: Callable[[Allocation], Allocation]
    name: str = "changed"

    @property
    def requires(self) -> Requires:
        return Requires("none")

    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        return self.change(WaterFilling()(model, None, sparsity))


def moved(count: int) -> Callable[[Allocation], Allocation]:
    """``count`` weights more in the first layer, and fewer in the second."""
    return lambda found: replace(
        found, keep=found.keep | {FIRST: found.keep[FIRST] + count, SECOND: found.keep[SECOND] - count}
    )


def without_first(found: Allocation) -> Allocation:
    return replace(found, keep={name: count for name, count in found.keep.items() if name != FIRST})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda found: replace(found, keep=found.keep | {FIRST: found.keep[FIRST] - 7}),
            r"counts that keep [\d,]+ weights, and sparsity=0\.5 keeps [\d,]+; .* keep_total",
        ),
        (moved(-10_000), f"{FIRST} keeps -[0-9]+ of 256, which is not a whole number"),
        (moved(129), f"{FIRST} keeps 257 of 256, which is not a whole number"),
        (
            lambda found: replace(found, keep={name: float(count) for name, count in found.keep.items()}),
            rf"{FIRST} keeps 128\.0 of 256, which is not a whole number from 0 to 256",
        ),
        (without_first, f"it has no entry for {FIRST}"),
        (
            lambda found: replace(found, keep=found.keep | {"lm_head.weight": 0}),
            "lm_head.weight is not a layer to prune here",
        ),
        (lambda found: replace(found, target=0.4), r"for the target 0\.4, and sparsity=0\.5 was asked for"),
        (
            lambda found: replace(moved(3)(found), total="asgiven"),
            r"whose total is 'asgiven'; correct it: it is one of exact, as_given, groups, units",
        ),
    ],
    ids=["sum", "negative", "too_many", "float", "missing", "unknown", "target", "total"],
)
def test_counts_that_can_not_be_are_refused(change: Callable[[Allocation], Allocation], message: str) -> None:
    model = tiny.build("llama")
    before = model.fingerprint()
    with pytest.raises(UserError, match=rf"allocation=changed returned .*{message}"):
        prune(model, sparsity=0.5, pruner="magnitude", allocation=Changed(change))
    assert model.fingerprint() == before


def test_a_total_of_towers_is_exact() -> None:
    model = tiny.build("blip2_t5")
    allocator = WaterFilling(scope="tower")
    found = checked_allocation(Changed(lambda _: allocator(model, None, 0.613)), model, None, 0.613)
    assert sum(found.keep.values()) == sum(allocator(model, None, 0.613).keep.values())
    assert sum(found.keep.values()) != sum(WaterFilling()(model, None, 0.613).keep.values())


def test_a_total_as_given_is_taken() -> None:
    taken = checked_allocation(
        Changed(lambda found: replace(moved(3)(found), total="as_given")), tiny.build("llama"), None, 0.5
    )
    assert taken.total == "as_given"


def test_counts_of_numpy_become_numbers_that_a_record_can_hold() -> None:
    def counted(found: Allocation) -> Allocation:
        return replace(found, keep={name: np.int64(count) for name, count in found.keep.items()})

    found = checked_allocation(Changed(counted), tiny.build("llama"), None, 0.5)
    assert {type(count) for count in found.keep.values()} == {int}


def test_an_allocator_of_shapes_is_checked_before_weights_are_read() -> None:
    config = SimpleNamespace(sparsity=0.5)
    plan = SimpleNamespace(
        pruner=Magnitude(),
        steps=["allocate"],
        allocator=Changed(moved(-10_000)),
        finetuner=None,
        config=config,
    )
    with pytest.raises(UserError, match="allocation=changed returned counts"):
        check_model(plan, tiny.build("llama"))  # type: ignore[arg-type]


def test_an_allocator_that_returns_something_else_is_refused() -> None:
    returns_counts = Changed(lambda found: found.keep)  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match="allocation=changed returned a dict; correct it"):
        prune(tiny.build("llama"), sparsity=0.5, pruner="magnitude", allocation=returns_counts)


def test_an_allocator_that_changes_weights_is_refused() -> None:
    model = tiny.build("llama")

    @dataclass(frozen=True)
    class Careless(Changed):
        @property
        def requires(self) -> Requires:
            return Requires("none", weights=True)

    def halved(found: Allocation) -> Allocation:
        with torch.no_grad():
            model.layers[0].matrix().mul_(0.5)
        return found

    with pytest.raises(
        UserError, match=rf"allocation=changed changed weights of the model \(1 tensors, such as {FIRST}\)"
    ):
        prune(model, sparsity=0.5, pruner="magnitude", allocation=Careless(halved))


def test_the_layers_in_a_module_are_not_those_of_one_whose_name_begins_alike() -> None:
    sizes = {"h.1.attn": 100, "h.1.mlp": 300, "h.10.attn": 100, "h.10.mlp": 300}
    allocation = Allocation({**sizes, "h.1.attn": 50, "h.10.mlp": 0}, sizes, 0.5, "layer")
    assert allocation.inside("h.1") == ["h.1.attn", "h.1.mlp"]
    assert allocation.sparsity_of(allocation.inside("h.1")) == pytest.approx(50 / 400)
    assert allocation.sparsity_of(allocation.inside("h.10")) == pytest.approx(300 / 400)
