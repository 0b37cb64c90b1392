"""One architecture at the hands of the package and of the slow reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.data.batch import Batch, Sample
from ecoflap.data.calibration_set import CalibrationSet, stack
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.driver import prune
from ecoflap.prune.protocol import Pruned
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.zeroth_order import ZerothOrder
from tests.prune.reference import calls_of, first_of, plain_passes
from tests.zoo import reference

# fp32 sums in another order. A wrong input is off by parts of one.
ROUNDING = 1e-4
# So large that the difference of two losses stands well above their rounding; both sides take the same step.
EPS = 0.05
SEED = 3


@dataclass
class Comparison:
    """What one algorithm did with one architecture.

    Attributes:
        refusal: the line that the package refuses it with; null where it doesn't.
        wrong: what differs from the reference; empty where nothing does.
        error: the largest relative error of a statistic or score.
        ties: weights that were chosen otherwise where the reference's metrics are equal to rounding.
    """

    refusal: str | None = None
    wrong: list[str] = field(default_factory=list)
    error: float = 0.0
    ties: int = 0

    def note(self, name: str, error: float, allowed: float = ROUNDING) -> None:
        """Take one relative error."""
        self.error = max(self.error, error)
        if not error <= allowed:
            self.wrong.append(f"{name} is off by {error:.1e}")


def recording(pruner: Any, model: PrunableModel, seen: dict[str, Tensor]) -> Any:
    """The pruner, which notes the statistic that it is given for each layer."""
    kind = type(pruner)

    class Recording(kind):  # type: ignore[misc, valid-type]
        def together(self, weights: Sequence[Tensor], statistic: Any, keeps: Sequence[int]) -> list[Pruned]:
            for weight in weights:
                layer = next(layer for layer in model.layers if torch.equal(layer.matrix(), weight))
                seen[layer.name] = statistic.value.clone()
            return kind.together(self, weights, statistic, keeps)  # type: ignore[no-any-return]

    return Recording(**{option.name: getattr(pruner, option.name) for option in dataclasses.fields(pruner)})


def uniform(model: PrunableModel) -> Allocation:
    """Half of every layer."""
    return WaterFilling()(model, None, 0.5)


def pruned(
    build: Callable[[], PrunableModel],
    calibration: CalibrationSet,
    pruner: Wanda | SparseGPT,
    propagate: str = "pruned",
    allocate: Callable[[PrunableModel], Allocation] = uniform,
) -> Comparison:
    """Prune one copy, walk through another, and compare each block's statistics, masks and weights.

    The walk goes on with the weights that the package made, so that a difference shows where it arises and
    nowhere else.
    """
    result, model, walked = Comparison(), build(), build()
    allocation, seen = allocate(model), dict[str, Tensor]()
    try:
        watched = recording(pruner, model, seen)
        report = prune(model, calibration, watched, allocation, batch_size=2, propagate=propagate)
    except UserError as error:
        result.refusal = str(error)
        return result
    steps = layer_by_layer if propagate == "layer" else block_by_block
    for layers in steps(walked, calibration):
        compare_layers(result, layers, walked, model, report.masks, allocation, calibration.samples, seen)
    others = zip(model.module.named_parameters(), walked.module.parameters(), strict=True)
    result.wrong += [f"{name} changed" for (name, one), other in others if not torch.equal(one, other)]
    return result


def block_by_block(model: PrunableModel, _: CalibrationSet) -> Iterator[Sequence[Layer]]:
    """The layers that are measured before any of them is pruned: those of a block."""
    for tower in model.towers:
        for block in tower.blocks:
            yield block.layers


def layer_by_layer(model: PrunableModel, calibration: CalibrationSet) -> Iterator[Sequence[Layer]]:
    """Each layer alone, behind those that samples call before it; experts that no call reaches come last."""
    for tower in model.towers:
        for block in tower.blocks:
            dense, calls = list(block.layers), list[list[Layer]]()
            rerouted = any(
                layer.is_routed for layer in dense
            )  # by pruned weights, to experts in another order
            while dense:
                if rerouted or not calls:
                    with calls_of(block, dense) as calls:
                        plain_passes(model, calibration)
                layer = first_of(calls) or dense[0]
                yield [layer]
                dense.remove(layer)
                calls = [[one for one in call if one is not layer] for call in calls]


def compare_layers(
    result: Comparison,
    layers: Sequence[Layer],
    walked: PrunableModel,
    model: PrunableModel,
    masks: Mapping[str, Tensor],
    allocation: Allocation,
    samples: Sequence[Sample],
    statistics: Mapping[str, Tensor],
) -> None:
    """Compare what the package measured and made of some layers, and prune them in the dense copy.

    Args:
        result: gets what differs.
        layers: of the dense copy.
        walked: the dense copy.
        model: what the package pruned.
        masks: {layer: mask, as the layer is stored}.
        allocation: how many weights each layer keeps.
        samples: of the calibration set.
        statistics: {layer: what its pruner was given}.
    """
    done = {layer.name: layer for layer in model.layers}
    grams = reference.grams(walked, layers, samples)
    for layer in layers:
        name, mask = layer.name, layer.oriented(masks[layer.name])
        made = Made(name, statistics[name], mask, done[name].matrix(), allocation.keep[name])
        compare_layer(result, layer.matrix(), grams.get(layer), made)
    for layer in layers:
        layer.write(done[layer.name].matrix())


class Made(NamedTuple):
    """What the package measured of a layer and made of it, as [rows, cols], and how many weights it was to
    keep.
    """

    name: str
    statistic: Tensor
    mask: Tensor
    weight: Tensor
    keep: int


def compare_layer(result: Comparison, dense: Tensor, gram: Tensor | None, made: Made) -> None:
    """Compare it with what the reference finds: ``gram`` of the layer's inputs, null where it never ran."""
    name = made.name
    if gram is None:
        result.wrong.append(f"{name} never runs")
        return
    expected = gram if made.statistic.ndim == 2 else gram.diagonal()
    error = (made.statistic - expected).norm() / expected.norm().clamp_min(1e-30)
    result.note(f"the statistic of {name}", float(error))
    (compare_sparsegpt if made.statistic.ndim == 2 else compare_wanda)(result, dense, gram, made)


def compare_sparsegpt(result: Comparison, dense: Tensor, gram: Tensor, made: Made) -> None:
    """Compare mask and weights with those of the solver on the reference's statistic.

    Where saliences are equal to rounding, and masks may differ, with those of the package's statistic, which
    is known to be equal to rounding.
    """
    solved, mask = reference.sparsegpt(dense, gram, made.keep)
    if differing := int((made.mask != mask).sum()):
        solved, mask = reference.sparsegpt(dense, made.statistic, made.keep)
        result.ties += differing
    if not torch.equal(made.mask, mask):
        result.wrong.append(f"{int((made.mask != mask).sum())} weights of {made.name} are chosen otherwise")
    result.note(
        f"the weight of {made.name}", float((made.weight - solved).norm() / solved.norm()), 10 * ROUNDING
    )


def compare_wanda(result: Comparison, dense: Tensor, gram: Tensor, made: Made) -> None:
    """Compare the mask; a weight may be chosen instead of another of the same metric."""
    mask, metric = reference.wanda_mask(dense, gram, made.keep)
    here, there = (
        metric[one & ~other].sort().values for one, other in ((made.mask, mask), (mask, made.mask))
    )
    if len(here) != len(there) or not torch.allclose(here, there, rtol=1e-5, atol=0):
        result.wrong.append(f"{len(there)} weights of {made.name} are chosen otherwise")
    result.ties += len(here)
    if not torch.equal(made.weight, dense * made.mask):
        result.wrong.append(f"what stays of {made.name} changed")


def scored(
    build: Callable[[], PrunableModel], calibration: CalibrationSet, scorer: ZerothOrder | FirstOrder
) -> Comparison:
    """Score one copy by the package and another by the reference."""
    result, model, other = Comparison(), build(), build()
    try:
        scores = scorer(model, calibration, SEED).importance
    except UserError as error:
        result.refusal = str(error)
        return result
    batch = stack(calibration.samples[: scorer.samples])
    if isinstance(scorer, ZerothOrder):
        compare_zeroth_order(result, scores, other, batch, scorer.eps, SEED)
    else:
        compare_scores(result, scores, reference.first_order(other, batch))
    return result


def compare_zeroth_order(
    result: Comparison, scores: Mapping[str, float], model: PrunableModel, batch: Batch, eps: float, seed: int
) -> None:
    """Compare scores of one batch with those of moved weights, to the rounding of the two losses that are
    subtracted: a part of them, but not less than that of a probability near 1.
    """
    with torch.no_grad():
        noise = max(2e-6 * float(model.loss(batch).mean()), 2**-24) / eps
    compare_scores(result, scores, reference.zeroth_order(model, batch, eps, seed), noise)


def compare_scores(
    result: Comparison, scores: Mapping[str, float], expected: Mapping[str, float], noise: float = 0.0
) -> None:
    """Compare scores relatively; those below a thousandth of the largest, with that."""
    floor = max(1e-3 * max(expected.values()), 1e-30)
    for name, score in scores.items():
        difference = max(abs(score - expected[name]) - noise, 0.0)
        result.note(f"the score of {name}", difference / max(expected[name], floor), 1e-3)


Compare = Callable[[Callable[[], PrunableModel], CalibrationSet], Comparison]
ALGORITHMS: dict[str, Compare] = {
    "Wanda": lambda build, calibration: pruned(build, calibration, Wanda()),
    "SparseGPT": lambda build, calibration: pruned(build, calibration, SparseGPT()),
    "zeroth order": lambda build, calibration: scored(
        build, calibration, ZerothOrder(samples=2, batch_size=2, eps=EPS)
    ),
    "first order": lambda build, calibration: scored(build, calibration, FirstOrder(samples=2, batch_size=2)),
}
LAYER_BY_LAYER: dict[str, Compare] = {
    "Wanda": lambda build, calibration: pruned(build, calibration, Wanda(), "layer"),
    "SparseGPT": lambda build, calibration: pruned(build, calibration, SparseGPT(), "layer"),
}
