"""The coarse stage: score the layers, and allocate how many weights each keeps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from ecoflap.allocate.allocation import check_counts
from ecoflap.allocate.protocol import Context, checked_allocation
from ecoflap.console.telemetry import measure
from ecoflap.distributed.collectives import from_first
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.plan import Plan
from ecoflap.run.show import show_allocation
from ecoflap.run.state import RunState
from ecoflap.run.steps.keys import allocate_key, scores_key
from ecoflap.score.protocol import checked_scores
from ecoflap.score.scores import Scores
from ecoflap.storage.cache.store import Store
from ecoflap.storage.file_names import ALLOCATION, SCORES
from ecoflap.storage.files import write_json


def score(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Score the layers, and write ``scores.json``."""
    assert state.calibration is not None
    assert plan.scorer is not None
    calibration, scorer, seed = state.calibration, plan.scorer, plan.config.seed
    key = scores_key(plan, model, state)
    with measure(state.costs, "score") as cost:
        value, cost["cached"] = plan.store.get_or_compute(
            "scores", key, lambda: checked_scores(scorer, model, calibration, seed).to_json()
        )
    state.scores = Scores.from_json(value)
    write_json(plan.folder / SCORES, value)


def allocate(plan: Plan, model: PrunableModel, state: RunState) -> None:
    """Turn the scores into a count per layer, and write ``allocation.json``."""
    assert not plan.pruner.allocates
    stored: list[bool] = []  # of each intermediate result
    context = Context(
        plan.pruner,
        state.calibration,
        plan.config.batch_size,
        plan.config.seed,
        plan.config.tokens,
        # One line per step of an allocation would bury the others.
        recall=partial(_recall, replace(plan.store, level=logging.DEBUG), plan, model, state, stored.append),
    )
    with measure(state.costs, "allocate") as cost:
        allocation = checked_allocation(plan.allocator, model, state.scores, plan.config.sparsity, context)
        state.allocation = from_first(plan.pruner.fitted(allocation))
        check_counts(state.allocation, model.layers)
        cost["cached"] = bool(stored) and all(stored)
        if stored:
            cost |= {"recalled": sum(stored), "computed": len(stored) - sum(stored)}
    write_json(plan.folder / ALLOCATION, asdict(state.allocation))
    show_allocation(model, state.allocation)


def _recall(
    store: Store,
    plan: Plan,
    model: PrunableModel,
    state: RunState,
    note: Callable[[bool], None],
    name: Mapping[str, Any],
    compute: Callable[[], Any],
    dense: bool = False,
) -> Any:
    """An intermediate result of the allocation, which runs with other targets and resumed runs share.

    Whether it was stored is noted.
    """
    found, cached = store.get_or_compute("allocate", allocate_key(plan, model, state, name, dense), compute)
    note(cached)
    return found
