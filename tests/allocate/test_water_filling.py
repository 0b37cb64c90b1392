import math
from collections.abc import Callable

import pytest

from ecoflap.allocate.allocation import Allocation, check_sparsity, keep_total
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import gaussian
from ecoflap.score.scores import Scores
from tests import tiny

pytestmark = pytest.mark.any_release


def scored(model: PrunableModel, score: Callable[[Layer], float] | None = None) -> Scores:
    """Scores from a function of the layer, or else at random over four orders of magnitude."""
    score = score or (lambda layer: 10 ** (float(gaussian([1], layer.name))))
    return Scores("test", {layer.name: score(layer) for layer in model.layers}, {})


def groups(model: PrunableModel, granularity: str) -> list[list[str]]:
    layers = [[layer.name for layer in tower.layers] for tower in model.towers]
    if granularity == "model":
        return [[name for names in layers for name in names]]
    if granularity == "tower":
        return layers
    if granularity == "block":
        return [[layer.name for layer in block.layers] for tower in model.towers for block in tower.blocks]
    return [[name] for names in layers for name in names]


def check_counts(model: PrunableModel, allocation: Allocation, sparsity: float) -> None:
    sizes = model.sizes
    assert allocation.sizes == sizes
    assert list(allocation.keep) == list(sizes)
    assert all(type(keep) is int and 0 <= keep <= sizes[name] for name, keep in allocation.keep.items())
    assert allocation.target == sparsity


@pytest.mark.parametrize("aggregate", ["sum", "average"])
@pytest.mark.parametrize("granularity", ["layer", "block", "tower", "model"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.613, 0.95])
def test_total_is_exact_and_no_group_passes_the_cap(
    model: PrunableModel, sparsity: float, granularity: str, aggregate: str
) -> None:
    allocation = WaterFilling(granularity, aggregate)(model, scored(model), sparsity)
    check_counts(model, allocation, sparsity)
    total = sum(allocation.sizes.values())
    assert sum(allocation.keep.values()) == math.floor(round(total * (1 - sparsity), 6))
    assert allocation.sparsity == pytest.approx(sparsity, abs=1 / total)
    for names in groups(model, granularity):
        assert allocation.sparsity_of(names) <= min(1, sparsity + 0.1) + 1e-9
        for name in names:  # one sparsity within a group, to the last weight
            assert (
                abs(allocation.keep[name] - allocation.sizes[name] * (1 - allocation.sparsity_of(names))) <= 1
            )


@pytest.mark.parametrize("granularity", ["layer", "block", "tower"])
def test_extra_weights_are_in_proportion_to_the_scores(model: PrunableModel, granularity: str) -> None:
    """With close scores no group fills up, so keep = floor + lambda x score for all."""
    scores = scored(model, lambda layer: layer.size * (1 + 0.2 * math.sin(layer.size + len(layer.name))))
    allocation = WaterFilling(granularity)(model, scores, 0.6)
    levels, slack = [], []
    for names in groups(model, granularity):
        size, keep, score = (
            sum(table[name] for name in names)
            for table in (allocation.sizes, allocation.keep, scores.importance)
        )
        assert keep < size
        levels.append((keep - math.ceil(size * 0.3)) / score)
        slack.append(1 / score)  # one weight of rounding
    middle = sorted(levels)[len(levels) // 2]
    assert all(abs(level - middle) <= 2 * allowed for level, allowed in zip(levels, slack, strict=True))


@pytest.mark.parametrize("granularity", ["layer", "block", "tower"])
def test_average_is_the_sum_per_weight(model: PrunableModel, granularity: str) -> None:
    scores = scored(model)
    sizes = model.sizes
    group_size = {
        name: sum(sizes[other] for other in names) for names in groups(model, granularity) for name in names
    }
    average = WaterFilling(granularity, "average")(model, scores, 0.5)
    per_weight = WaterFilling(granularity, "sum")(
        model, scored(model, lambda layer: scores.importance[layer.name] / group_size[layer.name]), 0.5
    )
    assert all(abs(average.keep[name] - keep) <= 1 for name, keep in per_weight.keep.items())
    assert average.keep != WaterFilling(granularity, "sum")(model, scores, 0.5).keep


def test_scores_like_sizes_are_uniform(model: PrunableModel) -> None:
    per_layer = WaterFilling("layer", "sum")(model, scored(model, lambda layer: layer.size), 0.5)
    uniform = WaterFilling("model")(model, None, 0.5)
    assert all(abs(per_layer.keep[name] - keep) <= 1 for name, keep in uniform.keep.items())


def test_zero_scores_stay_at_the_cap_and_large_ones_fill_up(model: PrunableModel) -> None:
    favourite = model.towers[1].blocks[0].layers[0].name
    allocation = WaterFilling("layer")(
        model, scored(model, lambda layer: float(layer.name == favourite)), 0.5
    )
    assert allocation.keep[favourite] == allocation.sizes[favourite]
    others = [name for name in allocation.keep if name != favourite]
    assert all(
        0.4 * allocation.sizes[name] <= allocation.keep[name] < 0.6 * allocation.sizes[name]
        for name in others
    )


@pytest.mark.parametrize("granularity", ["layer", "block", "tower", "model"])
def test_scope_tower_reaches_the_target_in_each_tower(model: PrunableModel, granularity: str) -> None:
    allocation = WaterFilling(granularity, scope="tower")(model, scored(model), 0.613)
    check_counts(model, allocation, 0.613)
    for tower in model.towers:
        names = [layer.name for layer in tower.layers]
        assert sum(allocation.keep[name] for name in names) == math.floor(
            sum(allocation.sizes[name] for name in names) * (1 - 0.613)
        )
    if granularity != "model":  # otherwise the difference is a weight or two of rounding
        assert allocation.keep != WaterFilling(granularity)(model, scored(model), 0.613).keep


def test_a_tower_without_layers_takes_no_part() -> None:
    model = tiny.build("blip2_t5", skip_layers=("vision",))
    for scope in ("model", "tower"):
        allocation = WaterFilling("block", scope=scope)(model, scored(model), 0.5)
        check_counts(model, allocation, 0.5)


@pytest.mark.parametrize("allocator", [WaterFilling("block"), WaterFilling("layer", cap=0.7)])
def test_uniform_without_scores(model: PrunableModel, allocator: WaterFilling) -> None:
    allocation = allocator(model, None, 0.7)
    assert allocation.granularity == "model"
    assert allocation.keep == WaterFilling("model")(model, scored(model), 0.7).keep
    assert all(abs(keep - 0.3 * allocation.sizes[name]) < 1 for name, keep in allocation.keep.items())


def test_a_cap_at_the_sparsity_is_uniform(model: PrunableModel) -> None:
    allocation = WaterFilling("block", cap=0.6)(model, scored(model), 0.6)
    assert allocation.keep == WaterFilling("block")(model, None, 0.6).keep


def test_a_cap_too_close_for_whole_weights(model: PrunableModel) -> None:
    with pytest.raises(
        UserError, match=r"allocation\.cap=0\.600001 with sparsity=0\.6: cap .* makes the groups keep"
    ):
        WaterFilling("layer", cap=0.600001)(model, scored(model), 0.6)


@pytest.mark.parametrize("cap", [0.65, 0.8, 1.0])
def test_caps(model: PrunableModel, cap: float) -> None:
    allocation = WaterFilling("layer", cap=cap)(model, scored(model), 0.6)
    highest = max(allocation.sparsity_of([name]) for name in allocation.keep)
    assert 0.6 < highest <= cap
    assert sum(allocation.keep.values()) == math.floor(sum(allocation.sizes.values()) * 0.4)


def test_all_scores_zero(model: PrunableModel) -> None:
    zero = scored(model, lambda _: 0.0)
    with pytest.raises(
        UserError, match=r"all scores are zero, from vision_model\.encoder\.layers\.0\..* on: .* score=none"
    ):
        WaterFilling("block")(model, zero, 0.5)
    assert WaterFilling("model")(model, zero, 0.5).keep == WaterFilling()(model, None, 0.5).keep


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_impossible_sparsity(sparsity: float) -> None:
    for refuse in (check_sparsity, WaterFilling().check):
        with pytest.raises(UserError, match=r"is outside \[0, 1\)"):
            refuse(sparsity)


@pytest.mark.parametrize("cap", [0.59, 1.1, math.nan])
def test_impossible_cap(cap: float) -> None:
    with pytest.raises(
        UserError,
        match=r"with sparsity=0\.6: the cap is the largest sparsity of any group, between sparsity and 1",
    ):
        WaterFilling(cap=cap).check(0.6)


@pytest.mark.parametrize("option", ["granularity", "aggregate", "scope"])
def test_unknown_options(option: str) -> None:
    with pytest.raises(UserError, match=rf"allocation\.{option}=blok is not known; .*the choices are"):
        WaterFilling(**{option: "blok"})


@pytest.mark.parametrize(
    ("sparsity", "kept"),
    [
        (0.6, 400),
        (0.0, 1000),
        (0.9, 100),
        (0.999, 1),
        (1e-05, 999),
        (0.1 + 0.2, 700),
        (1 - 1 / 4, 250),
        (0.123456789, 876),
    ],
)
def test_decimals_are_read_as_written(sparsity: float, kept: int) -> None:
    assert keep_total([300, 700], sparsity) == kept


@pytest.mark.parametrize("sparsity", [1 / 3, 0.3333333333, 1 - 2 / 3])
def test_a_third_is_a_third(sparsity: float) -> None:
    assert keep_total([96], sparsity) == 64


@pytest.mark.parametrize(
    ("scored_by", "granularity"),
    [("block", "block"), ("block", "tower"), ("tower", "tower"), ("block", "model")],
)
@pytest.mark.parametrize("aggregate", ["sum", "average"])
def test_scores_of_groups_count_as_the_sums_of_their_layers(
    model: PrunableModel, scored_by: str, granularity: str, aggregate: str
) -> None:
    of_layers = scored(model, lambda layer: float(layer.size % 7 + 1))  # sums of them are exact
    groups_of: dict[str, float] = {}
    for tower in model.towers:
        for block in tower.blocks:
            for layer in block.layers:
                name = block.name if scored_by == "block" else tower.name
                groups_of[name] = groups_of.get(name, 0.0) + of_layers.importance[layer.name]
    of_groups = Scores("test", groups_of, {}, granularity=scored_by)
    allocator = WaterFilling(granularity, aggregate)
    assert allocator(model, of_groups, 0.6) == allocator(model, of_layers, 0.6)


@pytest.mark.parametrize(
    ("scored_by", "granularity", "wanted"),
    [("block", "layer", "layer"), ("tower", "layer", "layer"), ("tower", "block", "layer or block")],
)
def test_scores_of_larger_groups_are_refused(
    model: PrunableModel, scored_by: str, granularity: str, wanted: str
) -> None:
    scores = Scores("test", {}, {}, granularity=scored_by)
    with pytest.raises(
        UserError, match=f"one number per {scored_by}, and allocation=water_filling needs one per {wanted};"
    ):
        WaterFilling(granularity)(model, scores, 0.6)


def test_scores_that_are_no_importance_are_refused(model: PrunableModel) -> None:
    with pytest.raises(UserError, match="scores of kind importance, and score=test gives outliers"):
        WaterFilling()(model, Scores("test", {}, {}, kind="outliers"), 0.6)
