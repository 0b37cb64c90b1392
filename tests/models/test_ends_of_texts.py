"""A decoder writes on from its prompt, with no end of the text between, whatever its tokenizer appends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from ecoflap.data.conversation import Conversation, Turn
from ecoflap.data.example import Example, Generation
from ecoflap.models.families.vlm.interface import VlmInterface
from ecoflap.models.families.vlm.processor_inputs import ProcessorInputs, with_answer
from tests.models.test_choices import llama, tokenizer

pytestmark = pytest.mark.skipif(not hasattr(hf, "LlamaConfig"), reason="a newer model")
AROUND = ["$A", "$A </s>", "<s> $A </s>", "<s> $A </s> </s>"]


def begun(words: Any, around: str, text: str) -> list[int]:
    """A text behind the token that begins it, if any."""
    first = [words.bos_token_id] if around.startswith("<s>") else []
    return [*first, *words(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("asked", [("Why?",), ("Why?", "So."), ()])
@pytest.mark.parametrize("around", AROUND)
def test_an_answer_follows_its_prompt(around: str, asked: tuple[str, ...]) -> None:
    words = tokenizer(around)
    turns = [Turn(("user", "assistant")[number % 2], (text,)) for number, text in enumerate(asked)]
    sample = llama(words).interface.encode_conversation(Conversation((*turns, Turn("assistant", ("Yes.",)))))
    prompt = "".join(f"{text}\n" for text in asked)
    answer = "Yes." if prompt else " Yes."
    answered = [*words(answer, add_special_tokens=False)["input_ids"], words.eos_token_id]
    assert sample["input_ids"].tolist() == [*begun(words, around, prompt), *answered]
    assert sample["labels"][sample["labels"] != -100].tolist() == answered


@torch.no_grad()
@pytest.mark.parametrize("around", AROUND)
def test_a_model_goes_on_from_its_prompt(around: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tokenizer(around)
    model, read = llama(words), []
    generate = model.module.generate
    monkeypatch.setattr(
        model.module, "generate", lambda **given: read.append(given["input_ids"]) or generate(**given)
    )
    model.interface.answer(model, [Example("Why?")], Generation(max_new_tokens=1))
    assert [ids.tolist() for ids in read] == [[begun(words, around, "Why?")]]


def test_an_end_in_the_text_itself_is_kept() -> None:
    words = tokenizer("<s> $A </s>")
    read = llama(words).interface.tokens("Why?</s>")
    assert read == begun(words, "<s> $A </s>", "Why?</s>")
    assert read[-1] == words.eos_token_id


@pytest.mark.parametrize("around", AROUND)
def test_a_decoder_of_its_own_writes_behind_its_start_token(around: str) -> None:
    """That of an encoder-decoder which reads pictures, such as T5Gemma 2."""
    words = tokenizer(around)
    decoder = SimpleNamespace(bos_token_id=words.bos_token_id)
    module = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True, decoder=decoder))
    interface = VlmInterface(module, SimpleNamespace(tokenizer=words), "{}")
    sample = interface._answered({"input_ids": torch.tensor([[1]])}, "Why?", "Yes.", None)
    said = words("Yes.", add_special_tokens=False)["input_ids"]
    ends = max(1, around.count("</s>"))
    assert sample["labels"].tolist() == [[*said, *[words.eos_token_id] * ends]]


class Sees:
    """A processor that says of each token its type, and which of two tiles it attends to."""

    def __init__(self, around: str) -> None:
        self.tokenizer = tokenizer(around)

    def __call__(self, text: str, images: Any = None, return_tensors: str = "pt", **options: Any) -> Any:
        inputs = dict(self.tokenizer(text, return_tensors=return_tensors, **options))
        places = torch.arange(inputs["input_ids"].shape[1])
        seen = torch.stack([places, -places], dim=1)[None, :, None]
        return {**inputs, "token_type_ids": places[None], "cross_attention_mask": seen}


DECODER = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("written", ["", "<s>"])  # by a chat template
def test_what_a_processor_says_of_tokens_ends_with_the_prompt(around: str, written: str) -> None:
    processor = Sees(around)
    found = ProcessorInputs(DECODER, processor, {}).of_question(None, f"{written}Why?")
    expected, first = begun(processor.tokenizer, around, "Why?"), processor.tokenizer.bos_token_id
    if written and expected[0] != first:
        expected = [first, *expected]
    assert found["input_ids"].tolist() == [expected]
    assert {one.shape[1] for one in found.values()} == {len(expected)}


def test_an_answer_sees_what_the_last_token_before_it_sees() -> None:
    question = ProcessorInputs(DECODER, Sees("$A"), {}).of_question(None, "Why?")
    length = question["input_ids"].shape[1]
    sample = with_answer(question, torch.tensor([[7, 8]]), token_type=9)
    assert sample["token_type_ids"].tolist() == [[*range(length), 9, 9]]
    assert sample["cross_attention_mask"][0, -2:, 0].tolist() == [[length - 1, 1 - length]] * 2
    assert sample["labels"].tolist() == [[*[-100] * length, 7, 8]]
