"""The keys of shared products name every option that can change them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.offload.placement import Placement
from ecoflap.run.state import RunState
from ecoflap.run.steps.evaluation import evaluate
from ecoflap.run.steps.keys import (
    _options_beside_identity,
    allocate_key,
    blocks_key,
    dense_metrics_key,
    scores_key,
    statistics_key,
)
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.local import Local
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny

OPTIONS: dict[str, Any] = {
    "allocation": {"name": "owl"},
    "pruner": {"name": "wanda"},
    "batch_size": 2,
    "tokens": "all",
    "seed": 0,
    "propagate": "pruned",
    "model": {},
}


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
    seed: int = 0,
    tokens: str = "all",
    weights: str = "f",
    samples: int = 5,
    scored: int | None = None,
    **changes: Any,
) -> list[Any]:
    """The keys of scores and statistics of a run; the model and the set are the same where not said."""
    model = replace(tiny.build("llama"), **changes)
    settings = {"seed": seed, "tokens": tokens, "batch_size": 2, "model": {}}
    plan: Any = SimpleNamespace(
        config=SimpleNamespace(**settings), code=defaultdict(str), scorer=ZerothOrder(samples=scored)
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


def test_samples_that_are_not_scored_change_no_scores() -> None:
    same = [one == other for one, other in zip(keys(scored=3), keys(samples=4, scored=3), strict=True)]
    assert same == [True, False, False]
    assert keys(scored=3)[0] != keys(scored=4)[0]


def test_two_tasks_of_one_identity_share_no_metrics() -> None:
    plan: Any = SimpleNamespace(code=defaultdict(str), tasks={"a": Clipped(), "b": Named()})
    state: Any = SimpleNamespace(fingerprint="f", tasks={"a": {}, "b": {}})
    assert dense_metrics_key(plan, state, "a") != dense_metrics_key(plan, state, "b")


def pruned_with(
    weights: str = "f",
    samples: int = 5,
    counts: dict[str, Any] | None = None,
    name: str = "values",
    **changes: Any,
) -> list[Any]:
    """The keys of a trial of an allocation and of the pruned blocks; the rest is the same where not said."""
    plan: Any = SimpleNamespace(config=SimpleNamespace(**{**OPTIONS, **changes}), code=defaultdict(str))
    allocation = SimpleNamespace(**{"keep": {"a": 3}, "rows": {}, "row_weights": {}, **(counts or {})})
    calibration: CalibrationSet = tiny.samples("llama").take(samples)
    state: Any = SimpleNamespace(fingerprint=weights, calibration=calibration, allocation=allocation)
    model = tiny.build("llama")
    return [allocate_key(plan, model, state, {"result": name}, dense=False), blocks_key(plan, model, state)]


@pytest.mark.parametrize(
    ("change", "trials", "blocks"),
    [
        ({"weights": "g"}, False, False),
        ({"samples": 4}, False, False),
        ({"pruner": {"name": "ria"}}, False, False),
        ({"tokens": "text"}, False, False),
        ({"batch_size": 3}, False, False),
        ({"allocation": {"name": "dlp"}}, False, True),
        ({"seed": 1}, False, True),
        ({"name": "losses"}, False, True),
        ({"counts": {"keep": {"a": 4}}}, True, False),
        ({"counts": {"rows": {"a": [1, 2]}}}, True, False),
        ({"counts": {"row_weights": {"a": [0.5, 1.5]}}}, True, False),
        ({"propagate": "dense"}, True, False),
    ],
    ids=str,
)
def test_what_the_pruner_makes_of_another_run_is_another(
    change: dict[str, Any], trials: bool, blocks: bool
) -> None:
    assert [one == other for one, other in zip(pruned_with(), pruned_with(**change), strict=True)] == [
        trials,
        blocks,
    ]


def predictions(folder: Path, weights: str, limit: int) -> str:
    """The key of what a pruned model answers to a task."""
    found: list[str] = []

    class Evaluation:
        def identity(self) -> dict[str, Any]:
            return {"limit": limit}

        def __call__(self, _: Any, log: PredictionLog) -> dict[str, float]:
            found.append(log.key)
            return {"accuracy": 1.0}

    plan: Any = SimpleNamespace(code=defaultdict(str), folder=folder, mean=None)
    model: Any = SimpleNamespace(fingerprint=lambda: weights, module=nn.Module(), placement=Placement())
    evaluate(plan, model, {"task": Evaluation()}, RunState("dense"), "pruned")
    return found[0]


def test_predictions_of_another_pruned_model_or_task_are_not_resumed(tmp_path: Path) -> None:
    keys = {predictions(tmp_path, *given) for given in (("f", 1), ("g", 1), ("f", 2), ("f", 1))}
    assert len(keys) == 3


def test_an_evaluation_leaves_no_computed_buffers(tmp_path: Path) -> None:
    """A later step would compute with them, but not where the metrics came from the store."""
    module = nn.Module()
    module.register_buffer("angles", torch.zeros(2), persistent=False)

    class Growing:
        def identity(self) -> dict[str, Any]:
            return {}

        def __call__(self, _: Any, log: PredictionLog) -> dict[str, float]:
            module.register_buffer("angles", torch.ones(2), persistent=False)
            return {"accuracy": float(module.angles.sum())}

    plan: Any = SimpleNamespace(code=defaultdict(str), folder=tmp_path, mean=None)
    model: Any = SimpleNamespace(fingerprint=lambda: "f", module=module, placement=Placement())
    state = RunState("dense")
    evaluate(plan, model, {"task": Growing()}, state, "pruned")
    assert state.metrics == {"pruned": {"task": {"accuracy": 2.0}}}
    assert not module.angles.any()


def test_each_key_names_the_code_that_computes_the_value() -> None:
    model, state = tiny.build("llama"), RunState("f", calibration=tiny.samples("llama"), tasks={"a": {}})

    def named(key: Callable[[Any], Any]) -> set[str]:
        code = defaultdict[str, str](str)
        config = SimpleNamespace(**OPTIONS)
        key(SimpleNamespace(config=config, code=code, scorer=ZerothOrder(), tasks={"a": Clipped()}))
        return set(code)

    trial = named(lambda plan: allocate_key(plan, model, state, {}, dense=False))
    assert trial == {"allocation", "pruner", "blocks", "model"}
    dense = named(lambda plan: allocate_key(plan, model, state, {}, dense=True))
    assert dense == {"allocation", "blocks", "model"}
    assert named(lambda plan: blocks_key(plan, model, state)) == {"pruner", "blocks", "model"}
    assert named(lambda plan: scores_key(plan, model, state)) == {"score", "model"}
    measured = named(lambda plan: statistics_key(plan, Gram, model, state))
    assert measured == {"blocks", "statistic", "model"}
    assert named(lambda plan: dense_metrics_key(plan, state, "a")) == {"task a", "model"}
