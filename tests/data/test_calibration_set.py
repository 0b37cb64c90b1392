import pytest
import torch

from ecoflap.data.calibration_set import CalibrationSet, draw
from tests import tiny


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_are_of_one_shape_and_hold_every_sample_once(size: int) -> None:
    calibration = tiny.samples("blip2_t5", lengths=(5, 7, 6, 7, 5, 7, 7, 5))
    batches = calibration.batches(size)
    rows = [
        {name: tensor[row] for name, tensor in batch.items()}
        for batch in batches
        for row in range(len(batch["labels"]))
    ]
    in_order = sorted(
        calibration.samples, key=lambda sample: len(sample["input_ids"])
    )  # stable: as drawn within one length
    assert max(len(batch["labels"]) for batch in batches) == min(size, 4)
    assert len(rows) == len(in_order)
    for row, sample in zip(rows, in_order, strict=True):
        assert list(row) == list(sample)
        assert all(torch.equal(row[name], sample[name]) for name in sample)


def test_samples_of_other_names_share_no_batch() -> None:
    tokens = torch.arange(3)
    one, other = ({"input_ids": tokens, name: tokens} for name in ("labels", "attention_mask"))
    batches = CalibrationSet("names", (one, other, one)).batches(8)
    assert [(set(batch), len(batch["input_ids"])) for batch in batches] == [
        ({"input_ids", "attention_mask"}, 1),
        ({"input_ids", "labels"}, 2),
    ]


def test_no_batch_is_split_more_than_needed() -> None:
    assert [len(batch["input_ids"]) for batch in tiny.samples("opt", lengths=(5, 7, 5, 7, 5)).batches(2)] == [
        2,
        1,
        2,
    ]


def test_fewer_samples_than_wanted_repeat() -> None:
    calibration = tiny.samples("opt")
    twice = [*calibration.samples, *calibration.samples]
    assert calibration.repeat(12).samples == [*twice, *calibration.samples[:2]]
    assert calibration.repeat(2).samples == list(calibration.samples[:2])


def test_take() -> None:
    calibration = tiny.samples("opt")
    assert calibration.take(2).samples == calibration.samples[:2]
    assert len(calibration.take(99)) == len(calibration) == 5
    assert len(calibration.take(2)) == 2


def changed(change: str) -> CalibrationSet:
    first, second = (
        {name: tensor.clone() for name, tensor in sample.items()}
        for sample in tiny.samples("blip2_t5", lengths=(5, 5)).samples
    )
    if change == "value":
        second["pixel_values"][2, 7, 7] += 1e-6
    elif change == "name":
        second["target"] = second.pop("labels")
    elif change == "dtype":
        second["labels"] = second["labels"].int()
    elif change == "shape":
        second["pixel_values"] = second["pixel_values"].reshape(3, 4, 16)
    elif change == "one less":
        return CalibrationSet("tiny", (first,))
    return CalibrationSet("tiny", (second, first) if change == "order" else (first, second))


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape", "one less", "order"])
def test_fingerprint_sees_every_change(change: str) -> None:
    assert changed("nothing").fingerprint() == changed("nothing").fingerprint()
    assert changed(change).fingerprint() != changed("nothing").fingerprint()


def test_fingerprint_is_of_the_data_and_not_of_its_name() -> None:
    samples = tiny.samples("opt").samples
    assert CalibrationSet("one", samples).fingerprint() == CalibrationSet("other", samples).fingerprint()


def test_draw() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    indices = draw(100, 10, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert indices == draw(100, 10, seed=3)
    assert len(set(indices)) == 10
    assert set(indices) <= set(range(100))
    assert indices != draw(100, 10, seed=4)
    assert draw(100, 5, seed=3) == indices[:5]
    assert sorted(draw(4, 10, seed=0)) == [0, 1, 2, 3]
    assert draw(4, 0, seed=0) == []
