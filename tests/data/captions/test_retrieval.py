"""Retrieval against a brute force over all pairs, with models that know all, some or nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ecoflap.data.captions import retrieval
from ecoflap.data.captions.ranking import RANKS, nearest, rank_again, recall_errors, search
from ecoflap.data.captions.reading import clean
from ecoflap.data.captions.retrieval import Retrieval
from ecoflap.data.easy_vqa.reading import NAMES
from ecoflap.errors import NumericalError, UserError
from ecoflap.evaluate.prediction_log import PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from tests.data import caption_folders as folders

pytestmark = [pytest.mark.any_release, pytest.mark.long]


class Apart:
    """Random features, the same for the same picture or caption."""

    def __init__(self, queries: int | None = None) -> None:
        self.queries = queries

    def features(self, item: str, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(
            sum(ord(letter) * (place + 1) for place, letter in enumerate(item))
        )
        return normalize(torch.randn(*shape, generator=generator), dim=-1)

    def embed_images(self, model: PrunableModel, paths: Sequence[str]) -> Tensor:
        shape = (6,) if self.queries is None else (self.queries, 6)
        return torch.stack([self.features(Path(path).name, *shape) for path in paths])

    def embed_texts(self, model: PrunableModel, texts: Sequence[str]) -> Tensor:
        return torch.stack([self.features(text, 6) for text in texts])


class Together(Apart):
    """Looks at pairs too; counts them."""

    looked, stop_at = 0, None

    def match(self, model: PrunableModel, images: Sequence[str], texts: Sequence[str]) -> Tensor:
        if self.looked == self.stop_at:
            raise KeyboardInterrupt
        self.looked += 1
        return torch.stack(
            [
                self.features(f"{Path(image).name}{text}", 2)[0]
                for image, text in zip(images, texts, strict=True)
            ]
        )


class Knows(Together):
    """Sees what is on a picture, but only when it looks at it together with a caption."""

    def match(self, model: PrunableModel, images: Sequence[str], texts: Sequence[str]) -> Tensor:
        shown = [int(Path(image).stem) % 1000 for image in images]
        return torch.tensor([10.0 * (NAMES[index] in text) for index, text in zip(shown, texts, strict=True)])


class Blind(Together):
    """Finds everything equally good."""

    def embed_images(self, model: PrunableModel, paths: Sequence[str]) -> Tensor:
        return torch.ones(len(paths), 6)

    def embed_texts(self, model: PrunableModel, texts: Sequence[str]) -> Tensor:
        return torch.ones(len(texts), 6)

    def match(self, model: PrunableModel, images: Sequence[str], texts: Sequence[str]) -> Tensor:
        return torch.zeros(len(images))


def model(interface: object) -> PrunableModel:
    return PrunableModel("tiny", nn.Module(), (), (), (), lambda *_: torch.zeros(1), None, interface)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folders.karpathy(tmp_path / "flickr30k", "flickr30k")


def task(folder: Path, **options: Any) -> Retrieval:
    return Retrieval(str(folder), "flickr30k", **options)


def run(interface: object, folder: Path, **options: Any) -> dict[str, float]:
    return task(folder, **options).load(model(interface))(model(interface))


def by_brute_force(interface: Together, folder: Path, k_test: int) -> dict[str, float]:
    """Score all pairs, sort each row, and look where the right ones are."""
    asked, whose = task(folder).load(model(interface)), model(interface)
    images, texts = interface.embed_images(whose, asked.images), interface.embed_texts(whose, asked.texts)
    queries = images if images.dim() == 3 else images[:, None]
    apart = torch.stack(
        [torch.stack([(queries[image] @ text).max() for text in texts]) for image in range(len(images))]
    )
    logits = torch.stack(
        [interface.match(whose, [image] * len(asked.texts), asked.texts) for image in asked.images]
    )
    right = asked.owner[None] == torch.arange(len(images))[:, None]
    found: dict[str, float] = {}
    for kind, itc, itm, true in (("text", apart, logits, right), ("image", apart.t(), logits.t(), right.t())):
        limited = torch.full_like(itc, -100)
        for row, order in enumerate(itc.argsort(dim=1, descending=True)[:, :k_test]):
            limited[row, order] = (itc + itm)[row, order]
        for suffix, scores in (("", itc), ("_match", limited)):
            first = [
                min(place for place, index in enumerate(row) if true[number, index])
                for number, row in enumerate((-scores).argsort(dim=1, stable=True))
            ]
            found |= {
                f"{kind}_recall_{most}{suffix}": 100 * sum(place < most for place in first) / len(first)
                for most in RANKS
            }
    return found


@pytest.mark.parametrize("kind", [Apart, Together, Knows])
def test_pictures_are_the_items(folder: Path, tmp_path: Path, kind: type[Apart]) -> None:
    finds, looks = model(kind()), kind is not Apart
    found = task(folder).load(finds)(finds, log := PredictionLog(tmp_path / "log.jsonl"))
    assert log.items is not None
    assert log.items.metric == next(iter(found)) == f"text_recall_1{'_match' if looks else ''}"
    scores, count = [float(one) for one in log.items.scores], int(found["pictures"])
    assert len(scores) == len(log.items.answers) == len(log.items.examples) == count
    assert found[log.items.metric] == pytest.approx(100 * fmean(scores))
    assert found[f"{log.items.metric}_stderr"] == pytest.approx(100 * stdev(scores) / math.sqrt(count))
    of_it = {picture.image: picture.captions for picture in task(folder).chosen("task")}
    for answer, example, right in zip(log.items.answers, log.items.examples, scores, strict=True):
        assert (answer in [clean(caption) for caption in of_it[example.image or ""]]) == bool(right)


def test_captions_of_one_picture_count_as_one_item() -> None:
    owner = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    ranks = torch.tensor([0, 0, 9, 9, 0, 0, 9, 9])
    errors = recall_errors(torch.tensor([0, 9, 0, 9]), ranks, owner, "")
    assert errors["image_recall_1_stderr"] == pytest.approx(errors["text_recall_1_stderr"])
    assert errors["image_recall_1_stderr"] == pytest.approx(100 * stdev([1, 0, 1, 0]) / 2)
    assert errors["image_recall_10_stderr"] == 0


def test_what_is_not_among_the_candidates_comes_last() -> None:
    scores, pictures = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.arange(3)
    found = search(lambda rows: scores[rows], torch.tensor([1, 2]), pictures, count=2, block=1)
    assert found.ranks.tolist() == [1, 2]
    logits = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    assert rank_again(found, logits).tolist() == [0, 2]
    assert nearest(replace(found, scores=found.scores + logits)).tolist() == [1, 1]


@pytest.mark.parametrize("k_test", [12, 24, 128])
@pytest.mark.parametrize("queries", [None, 3])
def test_recalls_are_those_of_all_pairs(
    folder: Path, queries: int | None, k_test: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 1000)  # several blocks
    interface = Together(queries)
    found = run(interface, folder, k_test=k_test, batch_size=50)
    assert (
        found.items()
        >= {
            name: pytest.approx(value) for name, value in by_brute_force(interface, folder, k_test).items()
        }.items()
    )
    assert next(iter(found)) == "text_recall_1_match"
    assert found["text_recall_mean_match"] == pytest.approx(
        sum(found[f"text_recall_{most}_match"] for most in RANKS) / 3
    )
    assert found["recall_mean"] == pytest.approx((found["text_recall_mean"] + found["image_recall_mean"]) / 2)
    assert (found["pictures"], found["captions"]) == (24, 120)


def test_looking_together_finds_what_is_among_the_candidates(folder: Path) -> None:
    found = run(Knows(), folder)
    assert found["text_recall_1_match"] == found["image_recall_1_match"] == 100
    assert found["text_recall_1"] < 50
    few = run(Knows(), folder, k_test=1)
    assert few["text_recall_1_match"] == pytest.approx(found["text_recall_1"])
    assert few["text_recall_10_match"] == few["text_recall_1_match"]


def test_nothing_is_found_by_chance(folder: Path) -> None:
    found = run(Blind(), folder)
    assert {value for name, value in found.items() if "recall" in name} == {0.0}


def test_without_looking_together(folder: Path) -> None:
    only = run(Apart(), folder)
    assert only == run(Together(), folder, k_test=0)
    assert not [name for name in only if name.endswith("_match")]


def test_an_interrupted_run_goes_on(folder: Path, tmp_path: Path) -> None:
    file, whole, stopped, rest = tmp_path / "predictions.jsonl", Together(), Together(), Together()
    wanted = task(folder, k_test=6).load(model(whole))(model(whole), PredictionLog())
    stopped.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        task(folder, k_test=6).load(model(stopped))(model(stopped), PredictionLog(file, "a"))
    assert task(folder, k_test=6).load(model(rest))(model(rest), PredictionLog(file, "a")) == wanted
    assert rest.looked == whole.looked - 4
    others = Together()
    task(folder, k_test=7).load(model(others))(model(others), PredictionLog(file, "a"))  # other candidates
    assert others.looked > whole.looked


def test_captions_are_read_clean_and_limits_keep_pictures_whole(folder: Path) -> None:
    asked = task(folder, limit=5).load(model(Apart()))
    assert len(asked.images) == 5
    assert asked.owner.tolist() == [index for index in range(5) for _ in range(5)]
    assert asked.texts[0] == f"a picture of a {NAMES[0]}"
    assert asked.identity() != task(folder, limit=5, k_test=3).load(model(Apart())).identity()
    assert asked.identity() == task(folder, limit=5, batch_size=3).load(model(Apart())).identity()


def test_refusals(folder: Path) -> None:
    class Broken(Apart):
        def embed_texts(self, model: PrunableModel, texts: Sequence[str]) -> Tensor:
            return torch.full((len(texts), 6), float("nan"))

    with pytest.raises(NumericalError, match="not finite"):
        run(Broken(), folder)
    with pytest.raises(UserError, match=r"task\.k_test=-1 must be at least 1"):
        task(folder, k_test=-1)
    with pytest.raises(UserError, match="task=retrieval needs a model that embeds"):
        run(None, folder)
