"""The keys of shared products name every option that can change them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.run.steps.keys import _options_beside_identity, dense_metrics_key, scores_key, statistics_key
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.local import Local
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny


@dataclass(frozen=True)
class Clipped(FirstOrder):
    """A scorer with an option more, and the identity of its parent."""

    clip: float = 1.0


@dataclass(frozen=True)
class Named(Clipped):
    """One that names its option itself."""

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "clip": self.clip}


def test_an_option_that_a_subclass_adds_counts() -> None:
    assert _options_beside_identity(Clipped(clip=0.5)) == {"clip": 0.5}
    assert _options_beside_identity(Named(clip=0.5)) == {}


def test_options_that_change_no_number_stay_out() -> None:
    assert [_options_beside_identity(scorer()) for scorer in (FirstOrder, Local, ZerothOrder)] == [{}, {}, {}]


def keys(
    seed: int = 0, tokens: str = "all", weights: str = "f", samples: int = 5, **changes: Any
) -> list[Any]:
    """The keys of scores and statistics of a run; the model and the set are the same where not said."""
    model = replace(tiny.build("llama"), **changes)
    settings = {"seed": seed, "tokens": tokens, "batch_size": 2, "model": {}}
    plan: Any = SimpleNamespace(
        config=SimpleNamespace(**settings), code=defaultdict(str), scorer=ZerothOrder()
    )
    calibration: CalibrationSet = tiny.samples("llama").take(samples)
    state: Any = SimpleNamespace(fingerprint=weights, calibration=calibration)
    statistics = [statistics_key(plan, kind, model, state) for kind in (MeanSquare, Gram)]
    assert statistics[0] != statistics[1]
    return [scores_key(plan, model, state), *statistics]


@pytest.mark.parametrize("change", [{"weights": "g"}, {"samples": 4}, {"towers": ()}])
def test_measurements_of_another_model_or_set_are_others(change: dict[str, Any]) -> None:
    assert keys() == keys()
    assert all(one != other for one, other in zip(keys(), keys(**change), strict=True))


def test_the_seed_changes_scores_and_the_tokens_change_statistics() -> None:
    seed, tokens = (
        [a == b for a, b in zip(keys(), keys(**one), strict=True)]
        for one in ({"seed": 1}, {"tokens": "text"})
    )
    assert (seed, tokens) == ([False, True, True], [True, False, False])


def test_two_tasks_of_one_identity_share_no_metrics() -> None:
    plan: Any = SimpleNamespace(code=defaultdict(str), tasks={"a": Clipped(), "b": Named()})
    state: Any = SimpleNamespace(fingerprint="f", tasks={"a": {}, "b": {}})
    assert dense_metrics_key(plan, state, "a") != dense_metrics_key(plan, state, "b")
