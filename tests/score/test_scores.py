import json
import math
from collections.abc import Sequence

import pytest
import torch

from ecoflap.errors import NumericalError, UserError
from ecoflap.score.scores import Average, Scores, collect
from tests import tiny


def average(values: list[float], weights: list[float], batches: Sequence[int] = range(99)) -> Average:
    result = Average()
    for value, weight, batch in zip(values, weights, batches, strict=False):
        result.add(value, weight, "layer", batch)
    return result


def test_equal_weights_give_the_textbook_standard_error() -> None:
    values = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = average(values.tolist(), [3.0] * 10)
    assert result.mean == pytest.approx(float(values.mean()))
    assert result.standard_error == pytest.approx(float(values.std() / math.sqrt(10)))


def test_weights_count() -> None:
    assert average([1.0, 4.0], [2.0, 1.0]).mean == 2.0
    assert average([5.0], [2.0]).standard_error == 0.0
    assert average([3.0, 3.0, 3.0], [1.0, 2.0, 3.0]).standard_error == 0.0
    # sum w^2 (v - mean)^2 = 4 + 4, times n / (n - 1), over (sum w)^2
    assert average([1.0, 4.0], [2.0, 1.0]).standard_error == pytest.approx(math.sqrt(8 * 2) / 3)


def test_numbers_of_one_batch_count_as_their_mean() -> None:
    several = average([1.0, 3.0, 4.0, 10.0, 6.0], [2.0, 2.0, 1.0, 1.0, 3.0], [0, 0, 1, 1, 2])
    means = average([2.0, 7.0, 6.0], [4.0, 2.0, 3.0])
    assert several.mean == pytest.approx(means.mean)
    assert several.standard_error == pytest.approx(means.standard_error)
    alone = average([1.0, 3.0, 4.0], [2.0, 2.0, 2.0], [5, 5, 5])  # of one batch there is no other spread
    assert alone.standard_error == pytest.approx(average([1.0, 3.0, 4.0], [2.0, 2.0, 2.0]).standard_error)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(value: float) -> None:
    with pytest.raises(NumericalError, match=r"the score of layer is -?(nan|inf); the loss overflows there"):
        average([1.0, value], [1.0, 1.0])


def test_json_round_trip_is_exact() -> None:
    scores = collect(
        "method",
        {"a": average([1 / 3, 0.1], [1.0, 2.0]), "b": average([1e-300], [1.0])},
        {"samples": 2, "seed": 0},
    )
    assert Scores.from_json(json.loads(json.dumps(scores.to_json()))) == scores


def test_older_records_hold_importance_of_layers() -> None:
    record = {"method": "m", "importance": {"a": 1.0}, "standard_error": {"a": 0.0}, "details": {}}
    scores = Scores.from_json(record)
    assert (scores.granularity, scores.kind) == ("layer", "importance")


@pytest.mark.parametrize("granularity", ["layer", "block", "tower"])
def test_a_group_without_a_number_is_named(granularity: str) -> None:
    model = tiny.build("gpt2")
    names = {
        "layer": [layer.name for layer in model.layers],
        "block": [block.name for block in model.blocks],
        "tower": [tower.name for tower in model.towers],
    }[granularity]
    whole = Scores("own", dict.fromkeys(names, 1.0), {}, granularity=granularity)
    assert set(whole.by_layer(model.towers).values()) == set(names)
    lacking = Scores("own", dict.fromkeys(names[1:], 1.0), {}, granularity=granularity)
    with pytest.raises(UserError, match=rf"score=own has no number for {granularity} {names[0]}"):
        lacking.by_layer(model.towers)
