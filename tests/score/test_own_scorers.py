"""What a scorer of the user's own returns is checked, and so are the weights that it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import ecoflap
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Scores
from tests import tiny

FIRST = "model.layers.0.self_attn.q_proj.weight"


@dataclass(frozen=True)
class Probing(Scorer):
    """The change of the loss where a layer's weights are moved in place, and back."""

    restore: bool = True
    change: Callable[[Scores], Any] = lambda scores: scores
    samples: int = 2
    batch_size: int = 2
    name: str = "probing"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    @torch.no_grad()
    def __call__(self, model: PrunableModel, calibration: CalibrationSet, seed: int) -> Scores:
        importance = {}
        batch = calibration.take(self.samples).batches(self.batch_size)[0]
        for layer in model.layers:
            weight = layer.matrix()
            saved = weight.clone()
            weight.add_(0.1)
            importance[layer.name] = float(model.loss(batch).sum())
            weight.sub_(0.1)
            if self.restore:
                weight.copy_(saved)
        found: Scores = self.change(Scores(self.name, importance, dict.fromkeys(importance, 0.0)))
        return found


def with_first(value: float) -> Callable[[Scores], Scores]:
    return lambda scores: replace(scores, importance=scores.importance | {FIRST: value})


def test_weights_that_are_not_written_back_to_the_bit_are_refused() -> None:
    """The rounding of an addition and a subtraction stays; other weights were pruned than those read."""
    model, data = tiny.build("llama"), tiny.samples("llama")
    before = model.fingerprint()
    assert set(ecoflap.score(model, data, Probing()).importance) == set(model.sizes)
    assert model.fingerprint() == before
    with pytest.raises(
        UserError, match=rf"score=probing changed weights of the model \(\d+ tensors, such as {FIRST}\)"
    ):
        ecoflap.score(model, data, Probing(restore=False))
    with pytest.raises(UserError, match="score=probing changed"):
        ecoflap.prune(tiny.build("llama"), data=data, sparsity=0.5, score=Probing(restore=False))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda _: None, UserError, "score=probing returned a NoneType; correct it"),
        (with_first(math.nan), NumericalError, f"score=probing: the score of {FIRST} is nan"),
        (with_first(math.inf), NumericalError, f"score=probing: the score of {FIRST} is inf"),
        (with_first(-1.5), UserError, f"the score of {FIRST} is -1.5, and importance is not negative"),
    ],
    ids=["nothing", "nan", "infinite", "negative"],
)
def test_what_is_no_score_is_refused(
    change: Callable[[Scores], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ecoflap.score(tiny.build("llama"), tiny.samples("llama"), Probing(change=change))


def test_scores_of_another_kind_may_be_negative() -> None:
    signed = Probing(change=lambda scores: replace(with_first(-1.5)(scores), kind="signed"))
    found = ecoflap.score(tiny.build("llama"), tiny.samples("llama"), signed)
    assert found.importance[FIRST] == -1.5
