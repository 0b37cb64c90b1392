"""What a BLIP's text towers read: the token that stands before a text, texts that are too long, answers out
of a list, larger pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ecoflap.data.easy_vqa.reading import read_pictures, read_questions
from ecoflap.data.example import Example, Generation
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.encoding import encode_all
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip.ranking import SMOOTHING
from ecoflap.models.families.blip.retrieval import BlipRetrieval
from ecoflap.models.families.blip.text import BlipCaption, BlipVqa, cross_attended, image_states
from ecoflap.run.config import package_file
from tests.cli.conftest import composed

pytestmark = pytest.mark.long

CLS, END, ENC = 2, 3, 4  # in the vocabularies of the embedded models, where [MASK] stands in for [ENC]
LONG = "red circle " * 60
KINDS: dict[str, Any] = {"vqa": BlipVqa, "retrieval": BlipRetrieval, "caption": BlipCaption}


def load(kind: str, **options: Any) -> PrunableModel:
    model: PrunableModel = KINDS[kind](package_file(f"mini/blip_{kind}"), **options).load(
        torch.device("cpu"), Selection()
    )
    return model


@contextmanager
def texts_read(model: PrunableModel) -> Iterator[list[tuple[Tensor, bool]]]:
    """The ids that the text encoder reads, and whether it looks at a picture."""
    seen: list[tuple[Tensor, bool]] = []
    encoder: Any = model.module.text_encoder
    hook = encoder.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(
            (inputs["input_ids"], inputs.get("encoder_hidden_states") is not None)
        ),
        with_kwargs=True,
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize(("token", "first"), [(ENC, ENC), (None, CLS)])
def test_a_question_begins_with_the_encoders_token(token: int | None, first: int) -> None:
    model, question = load("vqa", encoder_token=token), read_questions("test")[0]
    sample = model.interface.encode(question)
    assert sample["input_ids"][0] == first
    assert sample["labels"][0] == model.module.decoder_start_token_id
    with texts_read(model) as seen:
        model.loss({name: tensor[None] for name, tensor in sample.items()})
        model.interface.answer(model, [question], Generation())
        model.interface.rank(model, [question], ["yes", "no"], 2)
    assert len(seen) == 3
    assert all(
        ids[0, 0] == first and torch.equal(ids[0, 1:], sample["input_ids"][1:]) and looks
        for ids, looks in seen
    )


@pytest.mark.parametrize(("token", "first"), [(ENC, ENC), (None, CLS)])
def test_a_caption_begins_with_it_only_beside_a_picture(token: int | None, first: int) -> None:
    model, pictures = load("retrieval", encoder_token=token), read_pictures("test")[:3]
    samples = encode_all(model, pictures, "calibration=easy_pictures")
    with texts_read(model) as seen:
        model.loss({name: torch.stack([sample[name] for sample in samples]) for name in samples[0]})
        model.interface.embed_texts(model, [one.target for one in pictures])
        model.interface.match(model, [one.image or "" for one in pictures], [one.target for one in pictures])
    assert [looks for _, looks in seen] == [
        False,
        True,
        True,
        False,
        True,
    ], "contrast, right and wrong pairs; apart; together"
    for ids, looks in seen:
        assert ids[:, 0].tolist() == [first if looks else CLS] * 3


@pytest.mark.parametrize("kind", ["vqa", "retrieval"])
def test_a_token_that_the_model_does_not_have_is_refused(kind: str) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"model\.encoder_token=30523: this model has \d\d tokens; .* null where it was trained with"
            r" \[CLS\]"
        ),
    ):
        load(kind)


def test_published_models_have_it_and_the_embedded_ones_do_not() -> None:
    names = ("blip_vqa", "blip_vqa_capfilt_large", "blip_retrieval", "blip_retrieval_flickr")
    assert [composed([f"model={name}"]).model.encoder_token for name in names] == [30523] * 4
    assert [
        composed([f"model={name}"]).model.encoder_token for name in ("blip_vqa_mini", "blip_retrieval_mini")
    ] == [None, None]


def test_texts_beyond_the_position_table_lose_their_end() -> None:
    picture = read_pictures("test")[0].image or ""
    retrieval = load("retrieval", encoder_token=None)
    cut = " ".join(LONG.split()[:33])  # 35 tokens with the two that stand around them
    embedded = retrieval.interface.embed_texts(retrieval, [LONG, cut, "red circle"])
    assert torch.equal(embedded[0], embedded[1])
    matched = retrieval.interface.match(retrieval, [picture] * 2, [LONG, cut])
    assert matched[0] == matched[1]
    vqa = load("vqa", encoder_token=None)
    assert len(vqa.interface.answer(vqa, [Example(LONG, image=picture)], Generation())) == 1
    sample = vqa.interface.encode(Example(LONG, LONG, picture))
    assert (len(sample["input_ids"]), len(sample["labels"])) == (35, 35)
    assert sample["labels"][-1] == END
    assert len(load("caption").interface.encode(Example(target=LONG, image=picture))["input_ids"]) == 40


def test_a_picture_of_many_captions_is_seen_once() -> None:
    model, (one, two) = (
        load("retrieval", encoder_token=None),
        [picture.image or "" for picture in read_pictures("test")[:2]],
    )
    pairs = [(one, "red circle"), (two, "a blue square"), (one, "green"), (one, "a red circle")]
    apart = torch.cat([model.interface.match(model, [image], [text]) for image, text in pairs])
    seen: list[int] = []
    vision: Any = model.module.vision_model
    handle = vision.register_forward_pre_hook(
        lambda _, __, keywords: seen.append(len(keywords["pixel_values"])), with_kwargs=True
    )
    together = model.interface.match(model, [image for image, _ in pairs], [text for _, text in pairs])
    handle.remove()
    assert seen == [2]
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def slow_losses(
    model: PrunableModel, question: Example, answers: list[str]
) -> tuple[list[float], list[float]]:
    """Log-probability of each answer's first token, and its whole loss, one answer at a time."""
    module: Any = model.module
    sample = {name: tensor[None] for name, tensor in model.interface.encode(question).items()}
    mask = sample["attention_mask"]
    pictures = cross_attended(image_states(module, sample["pixel_values"]))
    states = module.text_encoder(input_ids=sample["input_ids"], attention_mask=mask, **pictures)[0]
    first, whole = [], []
    for answer in answers:
        ids = model.interface.encode(Example(question.text, answer, question.image))["labels"][None]
        logits = module.text_decoder(
            input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=mask
        ).logits[0, :-1]
        first.append(float(logits[0].log_softmax(dim=-1)[ids[0, 1]]))
        whole.append(float(cross_entropy(logits, ids[0, 1:], reduction="sum", label_smoothing=SMOOTHING)))
    return first, whole


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 3, 128])
def test_ranked_answers_are_those_of_a_slow_search(k: int) -> None:
    model, questions = load("vqa", encoder_token=None), read_questions("test")[:6]
    answers = ["yes", "no", "circle", "red circle", "blue", "blue yes circle", "triangle red", "green"]
    expected = []
    for question in questions:
        first, whole = slow_losses(model, question, answers)
        candidates = sorted(range(len(answers)), key=lambda row: -first[row])[:k]
        expected.append(answers[min(candidates, key=lambda row: whole[row])])
    assert model.interface.rank(model, questions, answers, k) == expected
    assert len(set(expected)) > 1


def test_a_trained_model_ranks_the_right_answer_first() -> None:
    model, questions = load("vqa", encoder_token=None), read_questions("test")[:30]
    answers = sorted({question.target for question in read_questions("train")})
    found = model.interface.rank(model, questions, answers, 128)
    assert sum(answer == question.target for answer, question in zip(found, questions, strict=True)) > 25


def test_a_model_that_computes_nan_ranks_no_answers() -> None:
    model = load("vqa", encoder_token=None)
    torch.nn.init.constant_(model.layers[-1].weight, torch.nan)
    with pytest.raises(NumericalError, match="not finite"):
        model.interface.rank(model, read_questions("test")[:2], ["yes", "no"], 2)


def test_larger_pictures() -> None:
    model, question = load("vqa", encoder_token=None, image_size=96), read_questions("test")[0]
    assert model.interface.encode(question)["pixel_values"].shape == (3, 96, 96)
    positions = model.module.vision_model.embeddings.position_embedding  # type: ignore[union-attr]
    assert positions.shape[1] == 1 + 12**2
    same = load("vqa", encoder_token=None)
    assert torch.equal(positions[:, :1], same.module.vision_model.embeddings.position_embedding[:, :1])  # type: ignore[union-attr]
    assert len(model.interface.answer(model, [question], Generation())) == 1
    assert torch.equal(
        load("vqa", encoder_token=None, image_size=64).module.state_dict()[
            "vision_model.embeddings.position_embedding"
        ],
        same.module.state_dict()["vision_model.embeddings.position_embedding"],
    )
    with pytest.raises(
        UserError,
        match=(
            r"model\.image_size=60 must be a multiple of the patches of this model, which are 8 pixels wide"
        ),
    ):
        load("vqa", encoder_token=None, image_size=60)


def test_a_caption_that_is_cut_is_read_whole() -> None:
    """As ``calibration=cc3m`` cuts it, for models that write on from its beginning."""
    (whole,) = read_pictures("test")[:1]
    begun, rest = whole.target.split()
    cut = Example(begun, rest, whole.image, bare=True)
    pairs, captions = load("retrieval", encoder_token=ENC).interface, load("caption").interface
    assert pairs.encode(cut)["input_ids"].equal(pairs.encode(whole)["input_ids"])
    sample, expected = captions.encode(cut), captions.encode(whole)
    assert sample["input_ids"].equal(expected["input_ids"])
    words = captions.processor.tokenizer
    targets = [tokens["labels"][tokens["labels"] != -100] for tokens in (sample, expected)]
    assert [words.decode(each, skip_special_tokens=True) for each in targets] == [rest, whole.target]
