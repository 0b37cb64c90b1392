"""NLVR2 with an interface that finds every sentence true, or judges by the label; its calibration split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ecoflap.data.example import Example
from ecoflap.data.nlvr2.calibration import Nlvr2 as Nlvr2Calibration
from ecoflap.data.nlvr2.task import Nlvr2
from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from tests.data.vqa_folders import write_nlvr2


class Judge:
    sees = True

    def __init__(self, knows: bool = False, classes: int = 2) -> None:
        self.knows, self.classes = knows, classes

    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        return torch.eye(self.classes)[[int(example.label or 0) if self.knows else 1 for example in examples]]

    def encode(self, example: Example) -> dict[str, Tensor]:
        return {"labels": torch.tensor(example.label)}


class Writer:
    def answer(self, *arguments: object) -> list[str]:
        return []

    def encode(self, example: Example) -> dict[str, Tensor]:
        return {}


def model(interface: object) -> PrunableModel:
    return PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, interface)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "dev", "test1"):
        write_nlvr2(tmp_path, split, "images")
    return tmp_path


def test_accuracy_by_split(folder: Path) -> None:
    knows, says_true = model(Judge(knows=True)), model(Judge())
    assert Nlvr2(str(folder), batch_size=4).load(knows)(knows) == {
        "accuracy_dev": 100,
        "accuracy_test1": 100,
        "sentences": 22,
        "accuracy_dev_stderr": 0,
        "accuracy_test1_stderr": 0,
    }
    true = pytest.approx(400 / 11)
    error = pytest.approx(100 * math.sqrt(4 / 11 * 7 / 11 / 10))  # s / sqrt(n) of 4 ones among 11
    assert Nlvr2(str(folder), batch_size=4).load(says_true)(says_true) == {
        "accuracy_dev": true,
        "accuracy_test1": true,
        "sentences": 22,
        "accuracy_dev_stderr": error,
        "accuracy_test1_stderr": error,
    }
    assert list(Nlvr2(str(folder), splits=["test1"], limit=3).load(knows)(knows)) == [
        "accuracy_test1",
        "sentences",
        "accuracy_test1_stderr",
    ]


def test_the_items_are_those_of_the_first_split(folder: Path, tmp_path: Path) -> None:
    says_true = model(Judge())
    found = Nlvr2(str(folder)).load(says_true)(says_true, log := PredictionLog(tmp_path / "log.jsonl"))
    assert log.items is not None
    assert log.items.metric == next(iter(found)) == "accuracy_dev"
    assert (len(log.items.scores), sum(log.items.scores)) == (11, 4)


def test_identity_changes_with_what_the_numbers_depend_on(folder: Path) -> None:
    judges = model(Judge())
    identity = Nlvr2(str(folder)).load(judges).identity()
    assert identity == Nlvr2(str(folder), batch_size=3).load(judges).identity()
    assert identity != Nlvr2(str(folder), limit=5).load(judges).identity()
    assert identity != Nlvr2(str(folder), splits=["test1", "dev"]).load(judges).identity()
    picture = Path(Nlvr2(str(folder)).load(judges).pairs["dev"][0].second_image or "")
    picture.write_bytes(picture.read_bytes()[::-1])  # of the same size
    assert identity != Nlvr2(str(folder)).load(judges).identity()


def test_calibration_takes_labelled_training_pairs(folder: Path) -> None:
    drawn = Nlvr2Calibration(str(folder), samples=11).load(model(Judge()), 0)
    assert sum(int(sample["labels"]) for sample in drawn.samples) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: Nlvr2(None).load(model(Judge())),
            r"task=nlvr2 needs the data set's folder: task\.path=FOLDER with dev\.json",
        ),
        (lambda folder: Nlvr2(folder).load(model(Writer())), "task=nlvr2 needs a model that classifies"),
        (
            lambda folder: Nlvr2(folder, limit=12).load(model(Judge())),
            r"task\.limit=12: there are 11 sentences in dev",
        ),
        (lambda folder: Nlvr2(splits=["val"]), r"task\.splits=\['val'\]: choose among train, dev, test1"),
        (
            lambda folder: Nlvr2Calibration(folder).load(model(Writer()), 0),
            "calibration=nlvr2 needs a model that classifies",
        ),
        (
            lambda folder: Nlvr2Calibration(folder, split="dev"),
            r"calibration\.split=dev: models are measured on the other splits",
        ),
    ],
)
def test_refusals(folder: Path, make: Callable[[str], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(str(folder))


def test_a_classifier_of_other_things_is_refused(folder: Path) -> None:
    wide = model(Judge(classes=24))
    with pytest.raises(
        UserError, match=r"task=nlvr2 needs a model that tells true from false, and tiny knows 24 classes"
    ):
        Nlvr2(str(folder)).load(wide)(wide)


def test_logits_that_are_not_finite(folder: Path) -> None:
    class Broken(Judge):
        def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
            return super().classify(model, examples) * float("nan")

    broken = model(Broken())
    with pytest.raises(NumericalError, match="not finite"):
        Nlvr2(str(folder)).load(broken)(broken)


def test_missing_pictures(folder: Path) -> None:
    (folder / "images" / "dev" / "dev-3-1-img1.png").unlink()
    with pytest.raises(
        UserError, match=r"task=nlvr2: 1 of 44 pictures are missing, such as .*dev-3-1-img1\.png"
    ):
        Nlvr2(str(folder)).load(model(Judge()))
