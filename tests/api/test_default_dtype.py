"""A default dtype that the caller has set changes no mask, no weight and no score."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import ecoflap
from ecoflap.ops.greedy_removal import greedy_removal_error
from tests import tiny

Found = dict[str, Any]


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 30, (6, 9)), "attention_mask": torch.ones(6, 9).long()}


def pictures() -> dict[str, torch.Tensor]:
    """Three texts of each picture, so that a third is in the loss."""
    return {**inputs(), "pixel_values": torch.randn(2, 3, 8, 8).repeat_interleave(3, dim=0)}


def in_both(
    make: Callable[[], Any], data: Callable[[], Any], step: Callable[[Any, Any], Found]
) -> list[Found]:
    """What a step finds with each default dtype, for the same model and the same data."""
    torch.manual_seed(0)
    module, given = make().eval(), [data()]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        found.append(step(copy.deepcopy(module), given))
    return found


def assert_same(first: Found, second: Found) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


@pytest.mark.parametrize(
    "options",
    [
        {"pruner": "magnitude"},
        {"pruner": "wanda"},
        {"pruner": "wanda", "refine": "swaps", "repair": True},
        {"pruner": "sparsegpt"},
        {"pruner": "admm"},
        {"pruner": "admm", "propagate": "compensated"},
        {"pruner": "global_gradient"},
        {"pruner": "wanda", "allocation": "in_context"},
        {"pruner": "wanda", "allocation": "lsa"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_pruners(options: dict[str, Any]) -> None:
    chosen = (
        options if "allocation" in options or "global" in options["pruner"] else {"score": "none", **options}
    )

    def pruned(module: Any, given: Any) -> Found:
        result = ecoflap.prune(module, data=given, sparsity=0.5, **chosen)
        weights = {f"{name} of the model": tensor for name, tensor in result.model.state_dict().items()}
        return {**result.masks, **weights, "errors": result.report.errors}

    assert_same(*in_both(tiny.LANGUAGE["llama"], inputs, pruned))


@pytest.mark.parametrize("kind", ["llama", "clip"])
@pytest.mark.parametrize(
    "options",
    [
        {"method": "zeroth_order"},
        {"method": "zeroth_order", "probe": "block"},
        {"method": "zeroth_order", "probe": "derivative"},
        {"method": "first_order"},
        {"method": "local"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_scorers(kind: str, options: dict[str, str]) -> None:
    def scored(module: Any, given: Any) -> Found:
        model = ecoflap.load(module)
        scores = ecoflap.score(model, ecoflap.calibrate(model, given), **options)
        return {"importance": scores.importance, "standard error": scores.standard_error}

    text = kind == "llama"
    make = tiny.LANGUAGE[kind] if text else tiny.DUAL[kind]
    assert_same(*in_both(make, inputs if text else pictures, scored))


def test_sums_of_errors() -> None:
    torch.manual_seed(0)
    weight, inputs_of_it = torch.randn(6, 16), torch.randn(40, 16)
    gram = inputs_of_it.t() @ inputs_of_it / 40
    wanted = greedy_removal_error(weight, gram, 0.5, 8)
    torch.set_default_dtype(torch.bfloat16)
    assert greedy_removal_error(weight, gram, 0.5, 8) == wanted
