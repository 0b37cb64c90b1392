"""What an evaluation returns is checked before it is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ecoflap.errors import UserError
from ecoflap.evaluate.protocol import checked_evaluation, checked_metrics
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny

pytestmark = pytest.mark.any_release


def test_numbers_of_libraries_become_plain_ones() -> None:
    found = checked_metrics(
        "own", {"accuracy": torch.tensor(50.0), "loss": np.float32(0.5), "rows": np.int64(3)}
    )
    assert found == {"accuracy": 50.0, "loss": 0.5, "rows": 3}
    assert [type(value) for value in found.values()] == [float, float, int]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (None, "task=own returned a NoneType; correct it"),
        (50.0, "task=own returned a float; correct it"),
        ({"accuracy": "good"}, "task=own returned 'good' as the metric accuracy; correct it"),
        ({"accuracy": torch.ones(2)}, r"task=own returned \[1.0, 1.0\] as the metric accuracy"),
    ],
    ids=["nothing", "number", "text", "several"],
)
def test_what_is_no_metric_is_refused(metrics: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_metrics("own", metrics)


def halving(model: PrunableModel) -> dict[str, float]:
    """An evaluation of one's own that forgets to write the weights back."""
    with torch.no_grad():
        model.layers[0].matrix().mul_(0.5)
    return {"loss": 1.0}


def test_an_evaluation_that_changes_weights_is_refused() -> None:
    model = tiny.build("llama")
    first = model.layers[0].name
    with pytest.raises(
        UserError, match=rf"task=own changed weights of the model \(1 tensors, such as {first}\)"
    ):
        checked_evaluation("own", halving, model)  # type: ignore[arg-type]


def test_a_buffer_that_the_model_itself_writes_is_no_weight() -> None:
    model = tiny.build("llama")
    model.module.register_buffer("calls", torch.zeros(1))

    def counting(model: PrunableModel) -> dict[str, float]:
        model.module.calls.add_(1)  # type: ignore[union-attr, operator]
        return {"calls": float(model.module.calls)}  # type: ignore[arg-type]

    assert checked_evaluation("own", counting, model) == {"calls": 1.0}  # type: ignore[arg-type]
