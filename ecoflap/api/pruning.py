"""Prune a model in one call, or with what earlier steps have found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.allocate.allocation import Allocation, check_sparsity
from ecoflap.allocate.protocol import Allocator
from ecoflap.api.calibration import calibrate
from ecoflap.api.loading import load
from ecoflap.api.parts import built, default, part
from ecoflap.api.result import PruneResult
from ecoflap.api.steps import check_scores
from ecoflap.api.unchanged import unchanged
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.console.telemetry import measure
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune import driver
from ecoflap.prune.inputs import check_propagate
from ecoflap.prune.protocol import Pruner
from ecoflap.prune.report import BlockReport, PruneReport
from ecoflap.run.config import RunConfig
from ecoflap.run.outcome import count_layers
from ecoflap.score.protocol import Scorer
from ecoflap.score.scores import Scores
from ecoflap.storage.results import Result, environment, sparsity_section

log = logging.getLogger(__name__)


def prune(
    model: nn.Module | PrunableModel,
    processor: Any = None,
    data: Any = None,
    *,
    sparsity: float | None = None,
    pruner: str | Pruner | None = None,
    score: str | Scorer | Scores | None = None,
    allocation: str | Allocator | Allocation | None = None,
    seed: int = RunConfig.seed,
    batch_size: int = RunConfig.batch_size,
    propagate: str = RunConfig.propagate,
    **options: Any,
) -> PruneResult:
    """Prune a model in place. Whatever isn't given is done first: load, calibrate, score, allocate.

    One call for all: ``ecoflap.prune(model, tokenizer, data=texts, sparsity=0.6)``. The last step
    alone, after the others: ``ecoflap.prune(model, data=data, allocation=allocation)``.

    Args:
        model: a transformers model in memory, or what ``ecoflap.load`` gave.
        processor: the tokenizer or processor of a transformers model.
        data: whatever ``ecoflap.calibrate`` takes or gives; not needed by a method that looks at none.
        sparsity: share of the prunable weights to remove, in [0, 1); the allocation's own, where it is given.
        pruner: ``"wanda"`` (the default), ``"sparsegpt"``, ``"magnitude"``, ``"global_magnitude"`` or
            ``"global_gradient"``; or an object such as ``ecoflap.Wanda(mask="2:4")``.
        score: what ``ecoflap.score`` takes as its method, or ``"none"`` for the same sparsity everywhere;
            or scores that it gave. Null for ``"zeroth_order"``, or nothing where the pruner or the allocation
            takes no scores, or a mask such as 2:4 leaves nothing to allocate.
        allocation: what ``ecoflap.allocate`` takes as its method; or an allocation that it gave.
        seed: of every random draw.
        batch_size: samples per forward pass of the pruner; changes nothing beyond rounding.
        propagate: whether a layer's inputs come from ``"pruned"`` predecessors or from ``"dense"`` ones.
        options: of a pruner by its name, such as ``damping=0.1``.

    Returns:
        The pruned model, its masks, and what a run writes as ``result.json``. The model is the one that was
        given; apart from its weights, nothing of it is changed.

    Raises:
        UserError: if something that was asked for can't be done.
        NumericalError: if a NaN or an infinity appears.
    """
    _check_model(model)
    module = model.module if isinstance(model, PrunableModel) else model
    with unchanged(module, processor if processor is not None else getattr(model, "processor", None)):
        if not isinstance(model, PrunableModel):
            model = load(model, processor)
        elif processor is not None:
            raise UserError("a processor goes with a transformers model; this one was loaded with its own")
        method = _method(pruner, score, allocation, options)
        target = _target(sparsity, allocation)
        _check(model, method, target, batch_size, propagate, data)
        work = Work(model, method, target, seed, batch_size, propagate)
        return work.run(data)


def _check_model(model: Any) -> None:
    """Refuse what is no model.

    Raises:
        UserError: if it is none.
    """
    if isinstance(model, PruneResult):
        raise UserError("the model is a PruneResult; give its model (result.model) with its processor")
    if isinstance(model, str | Path):
        raise UserError(f"the model is the name {str(model)!r}; give ecoflap.load({str(model)!r})")
    if not isinstance(model, nn.Module | PrunableModel):
        raise UserError(
            f"the model is a {type(model).__name__}; give a transformers model, or what ecoflap.load gives"
        )


@dataclass(frozen=True)
class Method:
    """The parts of a method.

    Attributes:
        pruner: of layers, or of the whole model.
        scorer: measures the layers; null for none.
        scores: that are known already; null for none.
        allocator: turns scores into counts; null where they are known.
        allocation: the counts that are known already; null for none.
    """

    pruner: Pruner
    scorer: Scorer | None
    scores: Scores | None
    allocator: Allocator | None
    allocation: Allocation | None

    @property
    def looks_at_data(self) -> bool:
        """Whether something has to see calibration data."""
        return self.scorer is not None or self.pruner.requires_calibration

    @property
    def uneven(self) -> bool:
        """Whether layers get sparsities of their own."""
        if self.allocation is not None:
            return self.allocation.granularity != "model"
        unscored = self.scorer is None and self.scores is None
        return not unscored or (self.allocator is not None and self.allocator.requires.scores == "none")

    def written(self) -> dict[str, Any]:
        """The parts as a run's config has them."""
        return {
            "pruner": _written(self.pruner),
            "score": _written(self.scorer if self.scorer is not None else self.scores),
            "allocation": _written(self.allocator),
        }


def _written(one: Any) -> dict[str, Any] | None:
    if one is None:
        return None
    if isinstance(one, Scores):
        return {"name": one.method}
    values = asdict(one) if is_dataclass(one) and not isinstance(one, type) else {}
    return {"_target_": f"{type(one).__module__}.{type(one).__qualname__}", **values}


def _method(pruner: Any, score: Any, allocation: Any, options: Mapping[str, Any]) -> Method:
    """The parts that were asked for, and those that go with them.

    Raises:
        UserError: if there is no such part or option.
    """
    chosen = default("pruner")["name"] if pruner is None else pruner
    made: Pruner = part("pruner", chosen, options)
    counts = allocation if isinstance(allocation, Allocation) else None
    allocator: Allocator | None = None
    if counts is None:
        allocator = part(
            "allocation", default("allocation")["name"] if allocation is None else allocation, {}
        )
    if isinstance(score, Scores):
        return Method(made, None, score, allocator, counts)
    unscored = made.allocates or allocator is None or allocator.requires.scores == "none"
    scorer: Scorer | None
    if score is None:
        scorer = None if unscored or _fixes_sparsity(made) else built("score", default("score"))
    else:
        scorer = part("score", score, {})
    if scorer is not None and unscored:
        raise UserError(
            "score was given, and this "
            f"{'pruner' if made.allocates else 'allocation'} takes no scores; leave one of the two out"
        )
    return Method(made, scorer, None, allocator, counts)


def _fixes_sparsity(pruner: Any) -> bool:
    """Whether a mask rule such as 2:4 says what every layer keeps."""
    return getattr(getattr(pruner, "rule", None), "n_of_m", None) is not None


def _target(sparsity: float | None, allocation: Any) -> float:
    """The sparsity that was asked for, or that an allocation was made for.

    Raises:
        UserError: if there is none, or two.
    """
    known = allocation.target if isinstance(allocation, Allocation) else None
    if sparsity is None and known is None:
        raise UserError(
            "sparsity is missing: the share of the prunable weights to remove, such as sparsity=0.6"
        )
    try:
        target = float(known if sparsity is None else sparsity)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(f"sparsity={sparsity!r} is not a number, such as sparsity=0.6") from None
    if known is not None and abs(target - known) > 1e-9:
        raise UserError(f"the allocation was made for sparsity={known:g}, and sparsity={target:g} was given")
    check_sparsity(target)
    return target


def _check(
    model: PrunableModel, method: Method, target: float, batch_size: int, propagate: str, data: Any
) -> None:
    """Refuse what can't come to its end, before any work is done.

    Raises:
        UserError: if it can't.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    check_propagate(propagate)
    if data is None and method.looks_at_data:
        raise UserError(
            "data are missing: the pruner or the scores look at some; give data=, such as a list of texts or"
            ' the name of a data set ("wikitext2")'
        )
    if method.pruner.allocates:
        if method.pruner.trains:
            raise UserError(
                f"pruner={method.pruner.name} trains on a data set's whole training split; start it from the"
                " command line"
            )
        return
    if method.allocation is not None:
        _check_allocation(model, method.allocation)
    if method.allocator is not None:
        method.allocator.check(target)
        check_scores(method.allocator, method.scorer or method.scores)
    method.pruner.check(target, method.uneven)
    method.pruner.check_layers(model.layers)


def _check_allocation(model: PrunableModel, allocation: Allocation) -> None:
    """Refuse counts that were made for other layers.

    Raises:
        UserError: if a layer is missing, or there is one too many.
    """
    if odd := {layer.name for layer in model.layers} ^ set(allocation.keep):
        raise UserError(
            f"the allocation was made for other layers than those of {model.name} ({min(odd)} is in one of"
            " the two only); make it with ecoflap.allocate and this model"
        )


@dataclass(frozen=True)
class Work:
    """The steps of one call.

    Attributes:
        model: dense.
        method: the parts.
        sparsity: the target.
        seed: of every draw.
        batch_size: samples per forward pass of the pruner.
        propagate: pruned or dense.
    """

    model: PrunableModel
    method: Method
    sparsity: float
    seed: int
    batch_size: int
    propagate: str

    def run(self, data: Any) -> PruneResult:
        """Do the steps that are left."""
        costs: dict[str, dict[str, Any]] = {}
        fingerprint = self.model.fingerprint()
        calibration = None
        if data is not None and self.method.looks_at_data:
            with measure(costs, "calibrate"):
                calibration = calibrate(self.model, data, seed=self.seed)
                self._check_calls(calibration)
        scores = self.method.scores
        if self.method.scorer is not None:
            assert calibration is not None
            with measure(costs, "score"):
                scores = self.method.scorer(self.model, calibration, self.seed)
        allocation = self.method.allocation
        if self.method.allocator is not None and not self.method.pruner.allocates:
            with measure(costs, "allocate"):
                allocation = self.method.allocator(self.model, scores, self.sparsity)
        with measure(costs, "prune"):
            allocation, report = self._prune(calibration, allocation)
        record = self._record(costs, fingerprint, calibration, allocation, report)
        return PruneResult(self.model, scores, allocation, report, record)

    def _check_calls(self, calibration: CalibrationSet) -> None:
        """Refuse layers that the pruner could not measure, before anything is scored."""
        if not self.method.pruner.allocates and self.method.pruner.requires_calibration:
            require_calls(self.model, calibration.batches(self.batch_size), every_layer=True)

    def _prune(
        self, calibration: CalibrationSet | None, allocation: Allocation | None
    ) -> tuple[Allocation, PruneReport]:
        pruner = self.method.pruner
        if pruner.allocates:
            return pruner.prune(self.model, calibration, self.sparsity, say_block)
        assert allocation is not None
        return allocation, driver.prune(
            self.model,
            calibration,
            pruner,
            allocation,
            self.batch_size,
            on_block=say_block,
            propagate=self.propagate,
            checked=True,
        )

    def _record(
        self,
        costs: dict[str, dict[str, Any]],
        fingerprint: str,
        calibration: CalibrationSet | None,
        allocation: Allocation,
        report: PruneReport,
    ) -> Result:
        """What a run writes as ``result.json``; the realised sparsity is counted in the weights."""
        model = self.model
        counts = count_layers(model, report)
        surroundings = environment()
        data = {}
        if calibration is not None:
            data["calibration"] = {
                "name": calibration.name,
                "samples": len(calibration),
                "fingerprint": calibration.fingerprint(),
            }
        return Result(
            config={
                **self.method.written(),
                "sparsity": self.sparsity,
                "seed": self.seed,
                "batch_size": self.batch_size,
                "propagate": self.propagate,
            },
            versions=surroundings["versions"],
            git=surroundings["git"],
            model={
                "name": model.name,
                "fingerprint": fingerprint,
                "parameters": model.parameter_count(),
                "prunable": sum(layer.size for layer in model.layers),
                "block_weights": model.block_weights(),
            },
            data=data,
            metrics={},
            sparsity=sparsity_section(
                counts,
                allocation.target,
                model.parameter_count(),
                allocation.total,
                "pruner" if self.method.pruner.allocates else "allocation",
            ),
            steps=costs,
        )


def say_block(block: BlockReport) -> None:
    """A line of the log per block."""
    error = "" if block.error is None else f", error {block.error:.3f}"
    log.info("%s: sparsity %.3f%s, %.2f s", block.block, block.sparsity, error, block.seconds)
