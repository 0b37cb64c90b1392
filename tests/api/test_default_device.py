"""A default device that the caller has set changes no result; ``meta`` has no numbers that could leak in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ecoflap
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny


def on_both(step: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    """What a step finds with each default device, for the same model and the same data."""
    torch.manual_seed(0)
    module, data = tiny.LANGUAGE["llama"]().eval(), [{"input_ids": torch.randint(3, 30, (6, 9))}]
    found = []
    for device in ("cpu", "meta"):
        given = copy.deepcopy(module)
        with torch.device(device):  # as torch.set_default_device, for this context
            found.append(step(given, data))
    return found[0], found[1]


@pytest.mark.parametrize(
    "options",
    [
        {"pruner": "magnitude", "score": "none"},
        {"pruner": "wanda"},
        {"pruner": "wanda", "score": "zeroth_order", "refine": "swaps"},
        {"pruner": "sparsegpt", "score": "first_order"},
        {"pruner": "admm", "allocation": "dlp", "propagate": "compensated"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_pruning(options: dict[str, Any]) -> None:
    def weights(module: Any, data: Any) -> dict[str, Tensor]:
        return dict(ecoflap.prune(module, data=data, sparsity=0.5, **options).model.state_dict())

    cpu, meta = on_both(weights)
    for name, weight in cpu.items():
        assert torch.equal(weight, meta[name]), name


def test_single_steps() -> None:
    def steps(module: Any, data: Any) -> tuple[dict[str, float], dict[str, int]]:
        model = ecoflap.load(module)
        calibration = ecoflap.calibrate(model, data)
        scores = ecoflap.score(model, calibration, method="zeroth_order")
        return scores.importance, ecoflap.allocate(model, scores, sparsity=0.5).keep

    cpu, meta = on_both(steps)
    assert cpu == meta


def test_tasks() -> None:
    class Loss:
        """The loss of texts that it draws itself."""

        name = "loss"

        def load(self, model: PrunableModel) -> Any:
            texts = torch.randint(3, 30, (6, 9), generator=torch.Generator().manual_seed(0))
            return lambda model: {"loss": float(model.module(input_ids=texts, labels=texts).loss)}

    cpu, meta = on_both(lambda module, _: ecoflap.evaluate(ecoflap.load(module), Loss()))
    assert cpu == meta


def test_a_measure_of_the_callers_has_the_callers_device() -> None:
    cpu, meta = on_both(
        lambda module, _: ecoflap.evaluate(
            ecoflap.load(module), lambda _: float(torch.empty(0).device.type == "meta")
        )
    )
    assert [*cpu.values(), *meta.values()] == [0.0, 1.0]
