"""Make the parts of a plan, and refuse those that lack something that the steps ask of them."""

from __future__ import annotations

from typing import Any, get_type_hints

from omegaconf import DictConfig

from ecoflap.allocate.protocol import Allocator
from ecoflap.errors import UserError
from ecoflap.finetune.protocol import Finetuner
from ecoflap.prune.protocol import LayerPruner, ModelPruner
from ecoflap.run.config import build
from ecoflap.score.protocol import Scorer

BASES: dict[str, tuple[type, ...]] = {
    "score": (Scorer,),
    "allocation": (Allocator,),
    "pruner": (LayerPruner, ModelPruner),
    "finetune": (Finetuner,),
}
"""The protocols of a group; a part has all members of one of them, from it or of its own."""


def make(group: str, node: DictConfig) -> Any:
    """Make a part of a config group.

    Raises:
        UserError: a value is impossible, or the part lacks something that its protocol has a default for.
    """
    part = build(group, node)
    base, missing = lacking(group, part)
    if missing:
        raise UserError(
            f"{group}._target_={node._target_} has no {', '.join(missing)}; derive it from"
            f" {base.__module__}.{base.__name__}, which has defaults"
        )
    return part


def lacking(group: str, part: Any) -> tuple[type, list[str]]:
    """The protocol of a group that a part is nearest to, and the members of it that the part lacks."""
    lacks = {base: [name for name in _members(base) if not hasattr(part, name)] for base in BASES[group]}
    base = min(lacks, key=lambda one: len(lacks[one]))
    return base, lacks[base]


def _members(base: type) -> list[str]:
    """The attributes and methods that a protocol names, beside ``__call__``."""
    return [name for name in {**get_type_hints(base), **vars(base)} if not name.startswith("_")]
