"""Settle a config: round its sparsity, and name what ``auto`` stands for.

``auto`` is the score, the allocation and the inputs of a run that names none.

On no embedded model and at no sparsity was in-context allocation worse than the same sparsity everywhere
beyond noise (docs/in_context_results.md). The published stage is a choice away: ``allocation=water_filling``.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ecoflap.allocate.protocol import Allocator
from ecoflap.errors import UserError
from ecoflap.prune.protocol import Pruner
from ecoflap.run import registry
from ecoflap.run.config import check_merged
from ecoflap.run.plan.parts import make
from ecoflap.storage.results.identity import rounded_sparsity

AUTO = "auto"
ZEROTH_ORDER, IN_CONTEXT, WATER_FILLING = "zeroth_order", "in_context", "water_filling"
CLASSES = {
    ZEROTH_ORDER: "ecoflap.score.zeroth_order.ZerothOrder",
    IN_CONTEXT: "ecoflap.allocate.in_context.InContext",
    WATER_FILLING: "ecoflap.allocate.water_filling.WaterFilling",
}


def settle(config: DictConfig) -> DictConfig:
    """A run's config that names what ``auto`` stands for, with a rounded sparsity; itself if it is settled.

    A run that scores and doesn't allocate scores for the allocation that goes by scores.

    Raises:
        UserError: if ``auto`` is given an option that it lacks, or pruner or allocation can't be built.
    """
    check_merged()
    if (sparsity := rounded_sparsity(config.sparsity)) != config.sparsity:
        config = config.copy()
        config.sparsity = sparsity
    if not (_is_auto(config.allocation) or _is_auto(config.score) or config.propagate == AUTO):
        return config
    pruner: Pruner = make("pruner", config.pruner)
    settled, steps = config.copy(), config.steps
    OmegaConf.set_struct(settled, False)
    _check_keys("allocation", config.allocation, {"name"}, IN_CONTEXT)
    _check_keys("score", config.score, {"name", "samples", "batch_size"}, ZEROTH_ORDER)
    if _is_auto(config.allocation):
        unscored = _is_auto(config.score)
        calibrated = "calibrate" in steps
        scored_alone = "score" in steps and "allocate" not in steps
        chosen = allocation_of(pruner, unscored and not scored_alone, calibrated)
        settled.allocation = _node("allocation", chosen)
    allocator: Allocator = make("allocation", settled.allocation)
    if _is_auto(config.score):
        given = {name: value for name, value in config.score.items() if name != "name" and value is not None}
        settled.score = (
            {**_node("score", ZEROTH_ORDER), **given}
            if takes_scores(pruner, allocator) and "score" in steps
            else {**config.score, "name": "none"}
        )
    settled.propagate = propagate_of(config.propagate, pruner, allocator.in_trials)
    OmegaConf.set_struct(settled, True)
    return settled


def allocation_of(pruner: Pruner, unscored: bool, calibrated: bool) -> str:
    """What ``allocation=auto`` stands for.

    Args:
        pruner: of the run.
        unscored: whether no score is chosen.
        calibrated: whether the run has calibration samples.

    Returns:
        In-context allocation; ECoFLaP's water filling where a score is chosen, or where nothing can be
        allocated: without samples, beside a pruner of the whole model, or with a mask such as 2:4.
    """
    return IN_CONTEXT if unscored and calibrated and _allocatable(pruner) else WATER_FILLING


def takes_scores(pruner: Pruner, allocator: Allocator) -> bool:
    """Whether ``score=auto`` stands for zeroth order: where the allocation goes by scores."""
    return allocator.requires.scores != "none" and _allocatable(pruner)


def propagate_of(choice: str, pruner: Pruner, in_trials: bool) -> str:
    """What ``propagate=auto`` stands for.

    A pruner that leaves kept weights as they are prunes from ``dense`` inputs what was allocated by pruning
    from dense inputs in trials; otherwise, inputs come from ``pruned`` blocks, as published.

    Args:
        choice: of the config.
        pruner: of the run.
        in_trials: whether the allocation was found by pruning in trials.
    """
    if choice != AUTO:
        return choice
    return "dense" if in_trials and not pruner.allocates and not pruner.corrects else "pruned"


def _allocatable(pruner: Pruner) -> bool:
    """Whether layers can get sparsities of their own."""
    return not pruner.allocates and pruner.rule.n_of_m is None


def _check_keys(group: str, node: DictConfig, known: Set[str], example: str) -> None:
    """Refuse options that ``auto`` lacks, which would be lost.

    Raises:
        UserError: if there is one.
    """
    unknown = sorted(set(node) - known) if _is_auto(node) else []
    if unknown:
        raise UserError(
            f"{group}.{unknown[0]} is not an option of {group}=auto, which chooses by itself; name the"
            f" {group} that has it, such as {group}={example}"
        )


def _is_auto(node: Any) -> bool:
    return "_target_" not in node and node.get("name") == AUTO


def _node(group: str, choice: str) -> dict[str, Any]:
    return registry.node(CLASSES[choice], registry.PARTS[group][CLASSES[choice]])
