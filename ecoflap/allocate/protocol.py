"""The protocol of an allocator: what it can require, and the run that it allocates for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ecoflap.allocate.allocation import Allocation, check_allocated, check_sparsity
from ecoflap.blocks.footprint import Footprint
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError, require_choices
from ecoflap.models.core.kept_weights import keeping_weights
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.protocol import LayerPruner
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import IMPORTANCE, LAYER, Scores


class Recall(Protocol):
    """Reads an intermediate result that an earlier run has stored, or computes and stores it."""

    def __call__(self, name: Mapping[str, Any], compute: Callable[[], Any], dense: bool = False) -> Any:
        """The result, in plain JSON values.

        Args:
            name: distinguishes it from the allocator's other results.
            compute: computes it.
            dense: whether it is measured on the dense model; runs with different pruners then share it.
        """


def compute_unstored(name: Mapping[str, Any], compute: Callable[[], Any], dense: bool = False) -> Any:
    """Compute an intermediate result without storing it."""
    return compute()


@dataclass(frozen=True)
class Context:
    """The run that an allocator allocates for.

    Attributes:
        pruner: the pruner that will remove the weights.
        calibration: the samples; None if the run draws none.
        batch_size: samples per forward pass of the fine stage.
        seed: seed of all random draws.
        tokens: which tokens count in statistics, see ``ecoflap.blocks.token_choice.choose_tokens``.
        recall: reads an intermediate result that an earlier run of the same model, samples, pruner and
            allocator has stored under a name, or computes and stores it.
    """

    pruner: LayerPruner
    calibration: CalibrationSet | None
    batch_size: int
    seed: int
    tokens: str = "all"
    recall: Recall = compute_unstored

    @property
    def samples(self) -> CalibrationSet:
        """The calibration set, which every allocator that requires one gets."""
        assert self.calibration is not None
        return self.calibration


@dataclass(frozen=True)
class Requires:
    """What an allocator reads.

    Attributes:
        scores: ``needed``, ``optional`` (used if there are any) or ``none`` (never used).
        kind: the kind of scores that it takes, see ``Scores``.
        granularities: the granularities of scores that it takes.
        weights: whether it reads the model's weights, not only its shapes.
        calibration: whether it runs the calibration set through the model.
    """

    scores: Literal["needed", "optional", "none"] = "needed"
    kind: str = IMPORTANCE
    granularities: tuple[str, ...] = (LAYER,)
    weights: bool = False
    calibration: bool = False


class Allocator(Protocol):
    """Decides how many weights each layer keeps.

    A new one derives from this class.

    Attributes:
        name: shown in logs and written to result files.
    """

    name: str

    def __post_init__(self) -> None:
        require_choices("allocation", self)

    @property
    def requires(self) -> Requires:
        """What it reads; by default, the importance of each layer."""
        return Requires()

    @property
    def footprint(self) -> Footprint | None:
        """What it keeps in memory beside the weights; by default, nothing."""
        return None

    @property
    def in_trials(self) -> bool:
        """Whether it decides by pruning the model in trials, from dense inputs."""
        return self.footprint is not None and self.footprint.trials > 0

    def uneven(self, scores: Scores | Scorer | None) -> bool:
        """Whether layers get sparsities of their own, with these scores."""
        return coarse_stage(self, scores) != "none"

    def check(self, sparsity: float) -> None:
        """Refuse an impossible target before any work is done.

        Raises:
            UserError: if the target is outside [0, 1).
        """
        check_sparsity(sparsity)

    def check_pruner(self, pruner: LayerPruner) -> None:
        """Refuse a pruner that it can't allocate for, before any work is done; by default, none."""
        return

    def check_samples(self, model: PrunableModel, samples: CalibrationSet, batch_size: int) -> None:
        """Refuse a model or calibration set that it can't allocate with, before long steps; by default, none.

        Args:
            model: dense.
            samples: the calibration set.
            batch_size: samples per forward pass of the fine stage.
        """
        return

    def passes(self, samples: int, sparsity: float) -> float:
        """How many samples all of its passes read in total, in any unit, to estimate its time.

        By default, each pass reads all samples.
        """
        return samples

    @abstractmethod
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        """Decide how many weights each layer keeps.

        Args:
            model: dense; its weights are unchanged afterwards, bit for bit.
            scores: as it requires them; None without scores.
            sparsity: the share of the prunable weights to remove.
            context: the run that it allocates for; None only where the allocator reads no calibration set.

        Raises:
            UserError: if no counts meet the target, or no sample reaches a layer.
            NumericalError: if what it measures is not finite.
        """


def checked_allocation(
    allocator: Allocator,
    model: PrunableModel,
    scores: Scores | None,
    sparsity: float,
    context: Context | None = None,
) -> Allocation:
    """Let an allocator decide, and refuse counts that don't fit the model or the target.

    Raises:
        UserError: if no counts meet the target, those that the allocator returns don't, or it has changed a
            weight.
    """
    part = f"allocation={allocator.name}"
    reads = allocator.requires.weights or allocator.requires.calibration
    with keeping_weights(model, allocator, part) if reads else nullcontext():
        allocation: object = allocator(model, scores, sparsity, context)
    if not isinstance(allocation, Allocation):
        raise UserError(f"{part} returned a {type(allocation).__name__}; correct it: it returns Allocation")
    return check_allocated(allocation, [tower.layers for tower in model.towers], sparsity, part)


def check_scores(allocator: Allocator, scores: Scores | Scorer | None) -> None:
    """Refuse scores, or the scorer of them, that an allocator can't take.

    Raises:
        UserError: if they are missing and needed, given and not read, or of another kind or granularity.
    """
    requires, name = allocator.requires, f"allocation={allocator.name}"
    if scores is None and requires.scores == "needed":
        such = ", such as score=zeroth_order" if requires.kind == IMPORTANCE else ""
        raise UserError(
            f"{name} needs scores of kind {requires.kind}, and there are none; choose a score of that kind"
            f"{such}, or allocation=water_filling, which is uniform without scores"
        )
    if scores is None:
        return
    if requires.scores == "none":
        raise UserError(f"{name} takes no scores; leave them out")
    if scores.kind != requires.kind:
        raise UserError(
            f"{name} needs scores of kind {requires.kind}, and score={scores.name} gives {scores.kind};"
            " choose another score, or another allocation"
        )
    if scores.granularity not in requires.granularities:
        raise UserError(
            f"score={scores.name} gives one number per {scores.granularity}, and {name} needs one per"
            f" {' or '.join(requires.granularities)}; choose another score, or a coarser allocation"
        )


def coarse_stage(allocator: Allocator, scores: Scores | Scorer | None) -> str:
    """What decides the sparsities of layers: the scorer, an allocator that takes no scores, or ``none``."""
    if allocator.requires.scores == "none":
        return allocator.name
    return "none" if scores is None else scores.name
