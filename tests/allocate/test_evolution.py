"""The search of EvoPress on plain arithmetic, against the released code, and what it never does."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from ecoflap.allocate.evolution import Evolution, Levels, Stage
from ecoflap.allocate.evopress import draws
from ecoflap.allocate.levels import make_ladder
from ecoflap.models.core.prunable import PrunableModel
from tests import tiny

pytestmark = pytest.mark.any_release

TARGET, WEIGHT = [2, -3, 1, 0, -1, 1], [3, 1, 2, 5, 1, 2]
LOWEST, HIGHEST = (-2, -4, -8, 0, -3, -1), (3, 2, 8, 4, 0, 2)

# evo_prune_search.main of IST-DASLab/EvoPress 50888a0 with ``plain`` as its fitness and twelve texts of four
# tokens: seed, offspring, survivors, samples, and the parent after each generation.
PUBLISHED: list[tuple[int, int, list[int], list[int], list[Levels]]] = [
    (
        0,
        8,
        [4, 2, 1],
        [2, 4, 8],
        [
            (2, 0, -1, 0, -1, 0),
            (2, 0, 0, 0, -2, 0),
            (2, -1, 0, 0, -2, 1),
            (2, -2, 1, 0, -2, 1),
            (2, -2, 1, 0, -2, 1),
        ],
    ),
    (
        1,
        16,
        [8, 2, 1],
        [1, 3, 10],
        [
            (0, -1, 1, 0, -1, 1),
            (1, -2, 1, 0, -1, 1),
            (2, -2, 1, 0, -1, 0),
            (2, -2, 1, 0, -2, 1),
            *[(2, -3, 1, 0, -1, 1)] * 8,
        ],
    ),
    (
        2,
        5,
        [1],
        [3],
        [
            (1, -1, 0, 0, -1, 1),
            *[(1, -2, 1, 0, -1, 1)] * 3,
            *[(2, -2, 1, 0, -1, 0)] * 4,
        ],
    ),
]


def plain(candidates: Sequence[Levels], samples: Sequence[int]) -> list[float]:
    """The distance from a target, and a part that depends on the samples."""
    found = []
    for levels in candidates:
        squares = sum(w * (level - t) ** 2 for w, level, t in zip(WEIGHT, levels, TARGET, strict=True))
        noise = sum(
            ((7 * i + 3 * k * level) % 11) / (10 + k) for i in samples for k, level in enumerate(levels)
        )
        found.append(squares + noise / len(samples))
    return found


def evolution(
    offspring: int = 8,
    stages: Sequence[Stage] = (Stage(3, 2), Stage(1, 5)),
    lowest: Levels = LOWEST,
    highest: Levels = HIGHEST,
    parts: Levels | None = None,
) -> Evolution:
    return Evolution(lowest, highest, parts or (0,) * len(lowest), offspring, stages, 12)


@pytest.mark.parametrize(("seed", "offspring", "survivors", "samples", "parents"), PUBLISHED)
def test_the_released_code_finds_the_same(
    seed: int, offspring: int, survivors: list[int], samples: list[int], parents: list[Levels]
) -> None:
    stages = [Stage(*stage) for stage in zip(survivors, samples, strict=True)]
    search, generator = evolution(offspring, stages), random.Random(seed)
    levels: Levels = (0,) * 6
    for expected in parents:
        levels, _ = search.generation(levels, generator.randrange, plain)
        assert levels == expected


def test_levels_stay_between_their_bounds_and_add_up_in_each_part() -> None:
    parts = (0, 1, 0, 1, 1, 0)
    search = evolution(parts=parts)
    levels: Levels = (0,) * 6
    for number in range(60):
        levels, _ = search.generation(
            levels, draws(0, number), lambda some, _: [hash(one) % 97 for one in some]
        )
        assert all(low <= one <= high for low, one, high in zip(LOWEST, levels, HIGHEST, strict=True))
        for part in (0, 1):
            assert sum(one for one, its in zip(levels, parts, strict=True) if its == part) == 0
    assert any(levels)


def test_flips_are_few() -> None:
    search = evolution(lowest=(-50,) * 40, highest=(50,) * 40, offspring=600)
    moved = Counter(sum(map(abs, one)) // 2 for one in search.mutations((0,) * 40, draws(0, 0)))
    assert set(moved) <= {0, 1, 2, 3}
    assert moved[1] > moved[2] > moved[3] > 0  # 5, 3 and 1 of nine


def test_the_parent_stays_if_nothing_is_better() -> None:
    parent = (2, -3, 1, 0, -1, 1)
    found, value = evolution().generation(
        parent, draws(0, 0), lambda some, _: [float(one != parent) for one in some]
    )
    assert (found, value) == (parent, 0.0)


def test_the_parent_competes_in_the_last_stage_alone() -> None:
    measured: list[int] = []

    def noting(candidates: Sequence[Levels], samples: Sequence[int]) -> list[float]:
        measured.append(len(candidates))
        return [float(one == parent) for one in candidates]

    parent = (2, -3, 1, 0, -1, 1)
    search = evolution(offspring=8, stages=(Stage(5, 2), Stage(3, 4), Stage(1, 5)))
    found, _ = search.generation(parent, draws(0, 0), noting)
    assert measured == [8, 5, 3 + 1]
    assert found != parent


def test_nan_never_wins() -> None:
    def broken(candidates: Sequence[Levels], samples: Sequence[int]) -> list[float]:
        return [math.nan if one[0] != 1 else 5.0 for one in candidates]

    search, parent = evolution(offspring=30), (0,) * 6
    found, value = search.generation(parent, draws(0, 3), broken)
    assert (found[0], value) == (1, 5.0)
    found, value = search.generation(parent, draws(0, 3), lambda some, _: [math.nan] * len(some))
    assert (found, value) == (parent, math.inf)


@pytest.mark.parametrize(
    ("lowest", "highest", "parts"),
    [
        ((0,), (0,), (0,)),
        ((-3,), (3,), (0,)),  # a single layer has nobody to trade with
        ((0, 0), (0, 0), (0, 0)),
        ((-3, 0), (0, 3), (0, 1)),  # nor has the only layer of each part
        ((-3, -3), (0, 0), (0, 0)),  # all could only be lowered
    ],
)
def test_where_nothing_can_change_the_parent_stays(lowest: Levels, highest: Levels, parts: Levels) -> None:
    search, parent = evolution(lowest=lowest, highest=highest, parts=parts), (0,) * len(lowest)
    assert search.mutations(parent, draws(0, 0)) == [parent]
    assert search.generation(parent, draws(0, 0), lambda some, _: [1.0] * len(some)) == (parent, 1.0)


def test_samples_are_distinct_and_all_if_there_are_no_more() -> None:
    seen: list[list[int]] = []

    def fitness(candidates: Sequence[Levels], samples: Sequence[int]) -> list[float]:
        seen.append(list(samples))
        return [0.0] * len(candidates)

    evolution(stages=[Stage(3, 5), Stage(2, 12), Stage(1, 99)]).generation((0,) * 6, draws(0, 0), fitness)
    assert [len(set(samples)) for samples in seen] == [5, 12, 12]


def test_draws_depend_on_seed_and_generation_alone() -> None:
    def some(seed: int, generation: int) -> list[int]:
        draw = draws(seed, generation)
        return [draw(1000) for _ in range(20)]

    assert some(0, 1) == some(0, 1)
    assert len({tuple(some(seed, generation)) for seed in (0, 1) for generation in (0, 1)}) == 4


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    return tiny.build("blip2_t5")


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.613, 0.95])
def test_levels_are_the_published_ones(model: PrunableModel, sparsity: float) -> None:
    """FastOBCPruner._prune_group of the same commit, and the default of prune.py with hidden_size 16."""
    layers = [tower.layers for tower in model.towers][1][::-1]  # an MLP's comes first
    ladder = make_ladder([layers], sparsity, 8)
    step = max(1, int(0.5 * min(sparsity, 1 - sparsity) / 8 * 16**2))
    assert set(ladder.steps) == {step}
    for layer, base, low, high in zip(layers, ladder.base, ladder.lowest, ladder.highest, strict=True):
        assert abs(base - (1 - sparsity) * layer.size) <= 1
        published = (
            min(int(sparsity // (step / layer.size)), 8),
            min(int((1 - sparsity) // (step / layer.size)), 8),
        )
        assert abs(-low - published[0]) <= 1  # a base is a whole number
        assert abs(high - published[1]) <= 1
        assert 0 <= base - high * step <= base - low * step <= layer.size


def test_layers_smaller_than_a_step_stay(model: PrunableModel) -> None:
    ladder = make_ladder([model.layers], 0.6, 8, step=300)
    for layer, low, high in zip(model.layers, ladder.lowest, ladder.highest, strict=True):
        if layer.size <= 256:
            assert (low, high) == (0, 0)
    assert any(ladder.lowest)
    assert ladder.counts([0] * len(model.layers)).keys() == {layer.name for layer in model.layers}
