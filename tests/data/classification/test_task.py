"""Classification of pictures: metrics by hand, calibration from the training split, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.data.classes import Classes
from ecoflap.data.classification.calibration import Classification as Calibration
from ecoflap.data.classification.calibration import draw_over_classes
from ecoflap.data.classification.class_names import own_labels
from ecoflap.data.classification.task import Classification, macro_f1
from ecoflap.data.easy_vqa.reading import NAMES
from ecoflap.data.example import Example
from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from tests.data.picture_sets import easy_pictures, write_folders, write_set

LABELS = {
    Path(picture.image or "").read_bytes(): picture.label or 0
    for split in ("train", "test")
    for picture in easy_pictures(split)
}


class Pairs:
    """Tells whether a text is true of two pictures, as BLIP-NLVR does; it has no names of classes."""

    sees = True

    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        raise NotImplementedError

    def encode(self, example: Example) -> dict[str, Tensor]:
        assert example.second_image is None
        raise UserError("NLVR looks at two pictures at a time")


def seen(path: str | None) -> int:
    """What is on a picture; the first class is mistaken for the second."""
    return max(1, LABELS[Path(path or "").read_bytes()])


class Classifier:
    """Its classes are in another order than the set's, and it has one more."""

    names = ("nothing", *reversed(NAMES))
    sees = True

    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        return torch.eye(25)[[24 - seen(one.image) for one in examples]]

    def encode(self, example: Example) -> dict[str, Tensor]:
        return {
            "labels": torch.tensor(example.label),
            "seen": torch.tensor(LABELS[Path(example.image or "").read_bytes()]),
        }


class Ordered(Classifier):
    names = tuple(f"class {index}" for index in range(24))

    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        return torch.eye(24)[[seen(one.image) for one in examples]]


class Towers:
    """Reads every prompt that names a class; keeps what it read."""

    sees = True

    def __init__(self, factor: float = 1.0) -> None:
        self.read: list[str] = []
        self.classes: Classes | None = None
        self.factor = factor

    def embed_images(self, model: PrunableModel, paths: Sequence[str]) -> Tensor:
        return self.factor * torch.eye(len(NAMES))[[seen(path) for path in paths]]

    def embed_texts(self, model: PrunableModel, texts: Sequence[str]) -> Tensor:
        self.read += texts
        return torch.eye(len(NAMES))[
            [next(index for index, name in enumerate(NAMES) if name in text) for text in texts]
        ]

    def set_classes(self, model: PrunableModel, classes: Classes) -> None:
        self.classes = classes

    def encode(self, example: Example) -> dict[str, Tensor]:
        self.read.append(example.target)
        return {
            "labels": torch.tensor(example.label),
            "seen": torch.tensor(LABELS[Path(example.image or "").read_bytes()]),
        }


def model(interface: object) -> PrunableModel:
    return PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, interface)


def task(path: Path, dataset: str = "dtd", split: str = "test", **options: Any) -> Classification:
    return Classification(dataset, split, str(path), name=dataset, **options)


@pytest.fixture(scope="module")
def dtd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"), "dtd").parent


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"), "imagenet").parent


# One of 24 classes is always taken for another: that one's F1 is 0, the other's 2 * 2 / (4 + 2).
EXPECTED = {"accuracy": 100 * 23 / 24, "macro_f1": 100 * (22 + 2 / 3) / 24, "images": 48}


@pytest.mark.parametrize("interface", [Classifier(), Towers()])
def test_by_a_classifiers_own_classes_and_zero_shot(dtd: Path, interface: object) -> None:
    found = task(dtd, batch_size=10).load(model(interface))(model(interface))
    assert list(found) == ["accuracy", "top_5", "macro_f1", "images", "accuracy_stderr"]
    assert {name: found[name] for name in EXPECTED} == pytest.approx(EXPECTED)
    assert 100 >= found["top_5"] >= found["accuracy"]


def test_imagenet_goes_by_the_order_of_its_folders(imagenet: Path) -> None:
    found = task(imagenet, "imagenet", "val", classes="open_clip", templates=["openai"]).load(
        model(Ordered())
    )(model(Ordered()))
    assert found["accuracy"] == EXPECTED["accuracy"]
    with pytest.raises(UserError, match="task=imagenet has 24 classes, and the model has 25"):
        task(imagenet, "imagenet", "val").load(model(Classifier()))


def test_each_class_is_read_in_every_template(dtd: Path) -> None:
    for templates, expected in ((None, ["{} texture."]), (["{} cloth.", "a {}."], ["{} cloth.", "a {}."])):
        towers = Towers()
        task(dtd, limit=3, templates=templates).load(model(towers))(model(towers))
        assert towers.read == [template.format(name) for name in NAMES for template in expected]


def test_fewer_classes_than_five(tmp_path: Path) -> None:
    write_folders(tmp_path, "test", [name.split()[1] for name in NAMES])

    class Shapes(Classifier):
        names = ("circle", "rectangle", "triangle")

        def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
            return torch.eye(3)[[LABELS[Path(one.image or "").read_bytes()] % 3 for one in examples]]

    found = task(tmp_path, "image_folder").load(model(Shapes()))(model(Shapes()))
    assert found == {"accuracy": 100, "top_5": 100, "macro_f1": 100, "images": 48, "accuracy_stderr": 0}


def test_a_class_without_pictures_in_the_split_is_a_candidate(tmp_path: Path) -> None:
    """A model that mistakes the one for the other isn't right because only one of them is tested."""
    for split in ("train", "test"):
        write_folders(tmp_path, split)
    shutil.rmtree(tmp_path / "test" / NAMES[1].replace(" ", "_"))
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "notes" / "no class").mkdir(parents=True)
    towers = Towers()
    found = task(tmp_path, "image_folder").load(model(towers))(model(towers))
    assert towers.read == [f"a photo of a {name}." for name in NAMES]
    assert (found["accuracy"], found["images"]) == (100 * 22 / 23, 46)
    assert task(tmp_path, "image_folder").load(model(Classifier()))(model(Classifier())) == found
    shutil.copytree(tmp_path / "test", tmp_path / "val")  # without the class as well
    read = task(tmp_path, "image_folder", "val").read("task", named=True)
    assert read.names == NAMES


def test_a_classifier_needs_only_the_classes_of_the_split(tmp_path: Path) -> None:
    for split, classes in (("train", ["zebra", *NAMES[1:]]), ("test", list(NAMES))):
        write_folders(tmp_path, split, classes)
    assert task(tmp_path, "image_folder").load(model(Classifier())).right == [
        24 - label for label in range(24) for _ in range(2)
    ]
    with pytest.raises(UserError, match="task=image_folder: the model has no class 'zebra'"):
        task(tmp_path, "image_folder", "train").load(model(Classifier()))


def test_macro_f1_by_hand() -> None:
    assert macro_f1([0, 0, 1, 2], [0, 1, 1, 1]) == pytest.approx(
        100 * (2 / 3 + 1 / 2) / 2
    )  # class 2 has no pictures
    assert macro_f1([1, 0], [0, 1]) == 0


def test_goes_on_where_it_stopped(dtd: Path, tmp_path: Path) -> None:
    def measured(towers: Towers, key: int) -> dict[str, float]:
        return task(dtd, batch_size=16).load(model(towers))(
            model(towers), PredictionLog(tmp_path / "dtd.jsonl", key)
        )

    found, blind = measured(Towers(), 1), Towers(float("nan"))
    assert measured(blind, 1) == found  # asked for no picture
    with pytest.raises(NumericalError, match="the model gives logits or features that are not finite"):
        measured(blind, 2)


def test_identity_changes_with_what_the_numbers_depend_on(dtd: Path, tmp_path: Path) -> None:
    def identity(path: Path, interface: object = None, **options: Any) -> dict[str, Any]:
        return task(path, **options).load(model(interface or Towers())).identity()

    elsewhere = write_set(tmp_path, "dtd").parent
    first = identity(dtd)
    assert first == identity(elsewhere) == identity(elsewhere, batch_size=7)
    assert (
        len(
            {
                str(one)
                for one in (
                    first,
                    identity(dtd, limit=9),
                    identity(dtd, templates=["a {}."]),
                    identity(dtd, Classifier()),
                )
            }
        )
        == 4
    )
    picture = elsewhere / "dtd" / "images" / "test_0003.jpg"
    picture.write_bytes(picture.read_bytes()[::-1])  # of the same size
    changed = identity(elsewhere)
    picture.write_bytes(b"shorter")
    assert first != identity(elsewhere) != changed != first


def test_other_right_classes_are_another_identity(dtd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = task(dtd).load(model(Classifier())).identity()
    swapped = lambda *arguments: own_labels(*arguments)[::-1]
    monkeypatch.setattr("ecoflap.data.classification.reading.own_labels", swapped)
    assert task(dtd).load(model(Classifier())).identity() != first


def test_calibration_takes_training_pictures_of_all_classes(dtd: Path) -> None:
    towers = Towers()
    calibration = Calibration("dtd", "train", str(dtd), samples=30, name="dtd").load(model(towers), 0)
    counts = Counter(int(sample["seen"]) for sample in calibration.samples)
    assert set(counts) == set(range(24))
    assert max(counts.values()) == 2
    assert towers.read == [f"{NAMES[int(sample['seen'])]} texture." for sample in calibration.samples]
    assert towers.classes == Classes(NAMES, ("{} texture.",))
    again, other = (
        Calibration("dtd", "train", str(dtd), samples=30, name="dtd").load(model(Towers()), seed)
        for seed in (0, 1)
    )
    assert again.fingerprint() == calibration.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(("dataset", "interface"), [("dtd", Classifier()), ("imagenet", Ordered())])
def test_calibration_of_a_classifier_by_its_own_labels(
    request: pytest.FixtureRequest, dataset: str, interface: Any
) -> None:
    path = request.getfixturevalue(dataset)
    calibration = Calibration(
        dataset, "train", str(path), classes="open_clip" if dataset == "imagenet" else None
    ).load(model(interface), 0)
    assert len(calibration) == 48
    for sample in calibration.samples:
        assert sample["labels"] == (24 - sample["seen"] if dataset == "dtd" else sample["seen"])


def test_rounds_over_the_classes() -> None:
    examples = [Example(label=label) for label in (0, 0, 0, 0, 1, 2, 2)]
    labels = [one.label for one in draw_over_classes(examples, 6, 0)]
    assert (sorted(labels[:3]), sorted(labels[3:5]), labels[5:]) == ([0, 1, 2], [0, 2], [0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: task(path, limit=49).load(model(Towers())), r"task\.limit=49: there are 48 pictures"),
        (lambda path: task(path, templates=["cloth"]), r"task\.templates='cloth' must hold \{\} once"),
        (lambda path: task(path, templates=["a {big} {}"]), r"'a \{big\} \{\}' must hold .* no other braces"),
        (lambda path: task(path, dataset="dtdd"), r"task\.dataset=dtdd is not known; did you mean dtd"),
        (lambda path: task(path).load(model(None)), "task=dtd needs a model that embeds"),
        (lambda path: task(path).load(model(Ordered())), "task=dtd: the model has no class 'black circle'"),
        (lambda path: task(path).load(model(Pairs())), "task=dtd needs a model that embeds"),
        (
            lambda path: Calibration("dtd", "train", str(path)).load(model(Pairs()), 0),
            "NLVR looks at two pictures",
        ),
        (
            lambda path: Calibration("imagenet", "val", str(path)),
            r"calibration\.split=val: models are measured on these pictures; choose train",
        ),
        (lambda path: Calibration("dtd", "test", str(path)), r"calibration\.split=test"),
        (lambda path: Calibration("dtd", "train", str(path), caption="{} {}"), r"calibration\.caption"),
        (lambda path: Calibration("dtd", "train", str(path), templates=["x"]), r"calibration\.templates"),
        (
            lambda path: Calibration("dtd", "train", str(path), name="dtd").load(model(None), 0),
            "calibration=dtd needs a model that encodes",
        ),
    ],
)
def test_refusals(dtd: Path, make: Callable[[Path], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(dtd)


def test_a_picture_that_is_missing(tmp_path: Path) -> None:
    (write_set(tmp_path, "dtd") / "images" / "test_0005.jpg").unlink()
    with pytest.raises(UserError, match=r"the picture .*test_0005\.jpg is not there"):
        task(tmp_path).load(model(Towers()))
