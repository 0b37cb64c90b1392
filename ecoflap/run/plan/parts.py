"""Build the parts of a plan, and refuse those that lack members of their protocol."""

from __future__ import annotations

from typing import Any, get_type_hints

from omegaconf import DictConfig

from ecoflap.allocate.protocol import Allocator
from ecoflap.console.tracking import Tracking
from ecoflap.data.protocol import Calibration
from ecoflap.errors import UserError
from ecoflap.evaluate.protocol import Task
from ecoflap.finetune.protocol import Finetuner
from ecoflap.models.loading.protocol import Loader
from ecoflap.prune.protocol import LayerPruner, ModelPruner
from ecoflap.run.instantiate import build
from ecoflap.score.protocol import Scorer

BASES: dict[str, tuple[type, ...]] = {
    "model": (Loader,),
    "calibration": (Calibration,),
    "score": (Scorer,),
    "allocation": (Allocator,),
    "pruner": (LayerPruner, ModelPruner),
    "finetune": (Finetuner,),
    "task": (Task,),
    "tracking": (Tracking,),
}
"""{group: its protocols}; a part has all members of one of them, inherited or its own."""
INHERITED = ("score", "allocation", "pruner", "finetune")
"""Groups whose protocols have defaults of what a part may leave out."""


def make(group: str, node: DictConfig) -> Any:
    """Build the part that a config group, or a member of a suite of tasks, describes.

    Raises:
        UserError: if a value is impossible, or the part lacks a member of its protocol.
    """
    part = build(group, node)
    require_members(group.partition(".")[0], part, f"{group}._target_={node._target_}")
    return part


def require_members(group: str, part: object, written: str) -> None:
    """Refuse a part that lacks something that the steps ask of it.

    Args:
        group: its config group.
        part: the object.
        written: how it was asked for, for the message.

    Raises:
        UserError: if it lacks a member of every protocol of its group, or its statistic a method.
    """
    lacks = {base: [name for name in _members(base) if not hasattr(part, name)] for base in BASES[group]}
    base = min(lacks, key=lambda one: len(lacks[one]))
    if lacks[base]:
        described = f"{base.__module__}.{base.__name__}"
        way_out = f"derive it from {described}, which has defaults"
        if group not in INHERITED:
            way_out = f"{described} says what a part of {group} has"
        raise UserError(f"{written} has no {', '.join(lacks[base])}; {way_out}")
    statistic = getattr(part, "statistic", None) if group == "pruner" else None
    if missing := sorted(getattr(statistic, "__abstractmethods__", ())):
        raise UserError(
            f"{getattr(statistic, '__name__', statistic)} of pruner={getattr(part, 'name', written)} has no"
            f" {' and no '.join(missing)} of its own, which every statistic needs"
        )


def _members(base: type) -> list[str]:
    """The names of a protocol's attributes and methods, beside ``__call__``."""
    return [name for name in {**get_type_hints(base), **vars(base)} if not name.startswith("_")]
