"""The tasks on Easy-VQA's pictures, with interfaces that see everything or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.data.easy_vqa.picture_tasks import EasyCaptions, EasyClassification, EasyRetrieval
from ecoflap.data.easy_vqa.pictures import EasyPictures
from ecoflap.data.easy_vqa.reading import NAMES, read_pictures, read_questions
from ecoflap.data.easy_vqa.task import EasyVqa, EasyVqaEvaluation
from ecoflap.data.example import Example, Generation
from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate.inputs import fingerprint, parts, percent, spread
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.core.prunable import PrunableModel

LABELS = {picture.image: picture.label for picture in read_pictures("test")}


def seen(path: str) -> int:
    """What is on a picture; the first class is mistaken for the second."""
    return max(1, LABELS[path])


class Classifier:
    names = NAMES

    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        return torch.eye(len(NAMES))[[seen(example.image or "") for example in examples]]


class Captioner:
    prompt = "a picture of"
    sees = True

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        return [f"A {NAMES[seen(example.image or '')]}" for example in examples]


class Retriever:
    """Better when it looks at picture and text together."""

    def embed_images(self, model: PrunableModel, paths: Sequence[str]) -> Tensor:
        return torch.eye(len(NAMES))[[seen(path) for path in paths]]

    def embed_texts(self, model: PrunableModel, texts: Sequence[str]) -> Tensor:
        return torch.eye(len(NAMES))[
            [next(index for index, name in enumerate(NAMES) if name in text) for text in texts]
        ]

    def match(self, model: PrunableModel, images: Sequence[str], texts: Sequence[str]) -> Tensor:
        return torch.tensor(
            [float(NAMES[LABELS[image]] in text) for image, text in zip(images, texts, strict=True)]
        )


def model(interface: object) -> PrunableModel:
    return PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, interface)


WRONG = 100 * sum(label == 0 for label in LABELS.values()) / len(LABELS)


def test_pictures_are_named_by_their_answers() -> None:
    train, test = read_pictures("train"), read_pictures("test")
    assert {picture.target for picture in train} == {picture.target for picture in test} == set(NAMES)
    assert not {picture.image for picture in train} & {picture.image for picture in test}
    picture = test[0]
    answers = {
        question.target
        for question in read_questions("test")
        if question.image == picture.image and question.text.startswith("what")
    }
    assert answers == set(picture.target.split())


@pytest.mark.parametrize("interface", [Classifier(), Retriever()])
def test_classification_by_classes_and_zero_shot(interface: object) -> None:
    found = EasyClassification(batch_size=100).load(model(interface))(model(interface))
    assert found["accuracy"] == pytest.approx(100 - WRONG)
    assert found["top_5"] >= found["accuracy"]
    assert found["pictures"] == len(LABELS)


def test_a_classifier_of_other_classes_is_refused_before_it_is_measured() -> None:
    class Cats(Classifier):
        names = ("cat", "dog")

    with pytest.raises(UserError, match="task=easy_classification: the model has no class 'black circle'"):
        EasyClassification().check_model(model(Cats()))


def test_captions() -> None:
    assert EasyCaptions().load(model(Captioner()))(model(Captioner()))["accuracy"] == pytest.approx(
        100 - WRONG
    )


def test_retrieval_looks_again_at_the_best() -> None:
    finds = model(Retriever())
    found = EasyRetrieval(rerank=24).load(finds)(finds)
    assert found["text_recall_1"] == pytest.approx(100 - WRONG)
    assert found["text_recall_1_match"] == found["image_recall_1_match"] == 100
    assert "text_recall_1_match" not in EasyRetrieval(rerank=0).load(finds)(finds)


def test_matches_that_differ_by_little_are_told_apart() -> None:
    """As those of a model that is pruned much; in fp32, 1000 has steps of 6e-5."""

    class Faint(Retriever):
        def embed_images(self, model: PrunableModel, paths: Sequence[str]) -> Tensor:
            return torch.ones(len(paths), len(NAMES))

        def match(self, model: PrunableModel, images: Sequence[str], texts: Sequence[str]) -> Tensor:
            return 1e-5 * super().match(model, images, texts)

    finds = model(Faint())
    found = EasyRetrieval(rerank=24).load(finds)(finds)
    assert found["text_recall_1_match"] == found["image_recall_1_match"] == 100


def test_logged_matches_of_other_pairs_are_not_taken(tmp_path: Path) -> None:
    """Another machine may round similarities to other closest captions, and resumes the log."""

    class Others(Retriever):
        def embed_images(self, model: PrunableModel, paths: Sequence[str]) -> Tensor:
            return super().embed_images(model, paths).roll(1, dims=1)

    task, log = EasyRetrieval(rerank=2), PredictionLog(tmp_path / "predictions.jsonl", "a")
    first, second = model(Retriever()), model(Others())
    task.load(first)(first, log)
    assert task.load(second)(second, log) == task.load(second)(second)


def test_several_queries_per_picture() -> None:
    class Queries(Retriever):
        def embed_images(self, model: PrunableModel, paths: Sequence[str]) -> Tensor:
            return torch.stack(
                [super().embed_images(model, paths), torch.zeros(len(paths), len(NAMES))], dim=1
            )

    one, several = (
        EasyRetrieval(limit=40).load(model(kind))(model(kind)) for kind in (Retriever(), Queries())
    )
    assert several == one


@pytest.mark.parametrize(
    ("task", "interface", "method"),
    [
        (EasyClassification, Classifier, "classify"),
        (EasyClassification, Retriever, "embed_images"),
        (EasyRetrieval, Retriever, "embed_images"),
        (EasyRetrieval, Retriever, "match"),
    ],
)
def test_logits_that_are_not_finite(
    task: type, interface: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(interface, method)
    monkeypatch.setattr(interface, method, lambda *arguments: right(*arguments) * torch.nan)
    broken = model(interface())
    with pytest.raises(NumericalError, match="not finite"):
        task(limit=40).load(broken)(broken)


def test_identity_changes_with_what_the_numbers_depend_on() -> None:
    captioner = model(Captioner())
    identity = EasyCaptions(limit=20).load(captioner).identity()
    assert identity == EasyCaptions(limit=20, batch_size=7).load(captioner).identity()
    assert identity != EasyCaptions(limit=21).load(captioner).identity()
    assert identity != EasyCaptions(limit=20, max_new_tokens=4).load(captioner).identity()
    other = Captioner()
    other.prompt = "this is"
    assert identity != EasyCaptions(limit=20).load(model(other)).identity()
    questions = EasyVqa(limit=5).chosen()
    ways: list[dict[str, Any]] = [{}, {"beams": 2}, {"max_new_tokens": 5}, {"length_penalty": 0.5}]
    asked = [EasyVqaEvaluation(EasyVqa(limit=5, **one), questions, None).identity() for one in ways]
    assert len({str(one) for one in asked}) == len(ways)
    pictures = read_pictures("test")[:3]
    assert fingerprint(pictures, None) != fingerprint(pictures[:2], None)


def test_shared_pieces() -> None:
    assert spread(range(10), 4, "things") == [0, 2, 5, 7]
    assert spread(range(3), None, "things") == [0, 1, 2]
    with pytest.raises(UserError, match=r"task\.limit=4: there are 3 things"):
        spread(range(3), 4, "things")
    assert parts(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert percent([True, False, True, True]) == 75


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EasyRetrieval(caption="a photo"), r"task\.caption='a photo' must hold \{\} once"),
        (lambda: EasyRetrieval(rerank=25), r"task\.rerank=25 must be 0 to 24"),
        (lambda: EasyClassification(templates=["{} {}"]), r"task\.templates"),
        (lambda: EasyPictures(caption="{} {}"), r"calibration\.caption"),
        (
            lambda: EasyClassification().load(model(Captioner())),
            "task=easy_classification needs a model that embeds, and tiny only answers and describes",
        ),
        (
            lambda: EasyVqa().load(model(Classifier())),
            "task=easy_vqa needs a model that describes, and tiny only classifies",
        ),
        (lambda: EasyRetrieval().load(model(Classifier())), "needs a model that embeds"),
        (
            lambda: EasyPictures().load(model(Classifier()), 0),
            "calibration=easy_pictures needs a model that encodes",
        ),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
