"""The method of a pruning call: its parts by name or as objects, or the results of earlier steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.protocol import Allocator, coarse_stage
from ecoflap.api.parts import part
from ecoflap.errors import UserError
from ecoflap.prune.protocol import Pruner
from ecoflap.run.plan.automatic import AUTO, ZEROTH_ORDER, allocation_of, takes_scores
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Scores
from ecoflap.storage.files import as_json


@dataclass(frozen=True)
class Method:
    """The parts of a method.

    Attributes:
        pruner: prunes layers or the whole model.
        scorer: scores the layers; None for no scores, or scores of an earlier step.
        scores: the scores of an earlier step; None if there are none.
        allocator: turns scores into counts; None for an allocation of an earlier step.
        allocation: the allocation of an earlier step; None if there is none.
    """

    pruner: Pruner
    scorer: Scorer | None
    scores: Scores | None
    allocator: Allocator | None
    allocation: Allocation | None

    @property
    def requires_calibration(self) -> bool:
        """Whether the scorer, the allocator or the pruner uses calibration data."""
        if self.scorer is not None or self.pruner.requires_calibration:
            return True
        return self.allocator is not None and self.allocator.requires.calibration

    @property
    def score(self) -> Scorer | Scores | None:
        """What scores the layers, or the scores of an earlier step."""
        return self.scorer if self.scorer is not None else self.scores

    @property
    def uneven(self) -> bool:
        """Whether layers get sparsities of their own, beside a pruner that does not decide them."""
        if self.allocation is not None:
            return self.allocation.uneven
        return self.allocator is None or self.allocator.uneven(self.score)

    @property
    def in_trials(self) -> bool:
        """Whether the allocation is found by pruning in trials."""
        decided = self.allocation if self.allocation is not None else self.allocator
        return decided is not None and decided.in_trials

    @property
    def coarse(self) -> str | None:
        """What decides the sparsities of layers: the scorer, an allocation without scores, or none.

        None if that is not known, or the pruner decides.
        """
        if self.pruner.allocates:
            return None
        if self.allocator is None:
            return None if self.scores is None else self.scores.name
        return coarse_stage(self.allocator, self.score)

    def to_config(self) -> dict[str, Any]:
        """The parts as in a run's config."""
        return {
            "pruner": _to_config(self.pruner),
            "score": _to_config(self.score),
            "allocation": _to_config(self.allocator),
        }


def _to_config(one: Any) -> dict[str, Any] | None:
    if one is None:
        return None
    if isinstance(one, Scores):
        return {"name": one.method}
    values = asdict(one) if is_dataclass(one) and not isinstance(one, type) else {}
    return {"_target_": f"{type(one).__module__}.{type(one).__qualname__}", **as_json(values)}


def choose_method(pruner: Any, score: Any, allocation: Any, options: Mapping[str, Any]) -> Method:
    """Build the requested parts, and the defaults of the others.

    Args:
        pruner: a pruner or its name; None for the default.
        score: a scorer, its name, or scores; None for the default.
        allocation: an allocator, its name, or an allocation; None for the default.
        options: options of a named pruner.

    Raises:
        UserError: if there is no such part or option, or nothing uses the scores.
    """
    chosen: Pruner = part("pruner", pruner, options)
    score = None if score == AUTO else score
    allocation = None if allocation == AUTO else allocation
    if chosen.allocates and allocation is not None:
        raise UserError(
            f"pruner={chosen.name} decides by itself what each layer keeps; leave the allocation out, and"
            " give sparsity="
        )
    known = allocation if isinstance(allocation, Allocation) else None
    allocator: Allocator | None = None
    if known is None:
        name = allocation_of(chosen, score is None, calibrated=True) if allocation is None else allocation
        allocator = part("allocation", name, {})
    unscored = chosen.allocates or allocator is None or allocator.requires.scores == "none"
    scores = score if isinstance(score, Scores) else None
    scorer: Scorer | None = None
    if score is None and allocator is not None and takes_scores(chosen, allocator):
        scorer = part("score", ZEROTH_ORDER, {})
    elif score is not None and scores is None:
        scorer = part("score", score, {})
    # Scores beside the allocation that was made of them are kept for the record.
    if unscored and (scorer is not None or (scores is not None and known is None)):
        owner = "pruner" if chosen.allocates else "allocation"
        raise UserError(f"a score was given, but the chosen {owner} does not use scores; omit one of them")
    return Method(chosen, scorer, scores, allocator, known)
