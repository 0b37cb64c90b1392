"""Answers are what a model writes, not what it was asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from ecoflap.data.easy_vqa.calibration import read_questions
from ecoflap.data.example import Example, Generation
from ecoflap.models.core.chats import continuation
from ecoflap.models.families.blip2.generation import Blip2Interface
from ecoflap.models.loading.loader import generated_tokens
from tests import tiny

if not hasattr(transformers, "Blip2Config"):
    pytest.skip(f"transformers {transformers.__version__} has no BLIP-2", allow_module_level=True)


def test_a_prompt_that_is_given_back_is_cut_off() -> None:
    prompt = torch.tensor([[0, 7], [8, 9]])
    new = torch.tensor([[5, 6, 1], [7, 9, 1]])
    assert generated_tokens(torch.cat([prompt, new], dim=1), prompt).equal(new)
    assert generated_tokens(new, prompt).equal(new)
    assert generated_tokens(new[:, :1], prompt).equal(new[:, :1])


class Inputs(dict[str, Tensor]):
    """What a processor gives."""

    def to(self, _: torch.device) -> Inputs:
        return self


@torch.no_grad()
def test_blip2_with_an_opt_answers_without_its_question() -> None:
    model = tiny.build("blip2_opt")
    batch = tiny.samples("blip2_opt", (5, 5)).batches(2)[0]
    decoded: list[Tensor] = []

    def decode(tokens: Tensor, skip_special_tokens: bool) -> list[str]:
        decoded.append(tokens)
        return [" ".join(map(str, row.tolist())) for row in tokens]

    interface: Any = Blip2Interface.__new__(Blip2Interface)
    interface.module, interface.prompt, interface.pixels = model.module, "{}", lambda _: batch["pixel_values"]
    inputs = Inputs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    interface.processor = lambda **_: inputs
    interface.processor.tokenizer = SimpleNamespace(padding_side="right", batch_decode=decode)
    picture = read_questions("test")[0].image
    module: Any = model.module
    expected = (
        module(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})
        .logits[:, -1]
        .argmax(dim=-1)
    )
    answers = interface.answer(
        model, [Example("one", image=picture), Example("two", image=picture)], Generation(max_new_tokens=3)
    )
    assert len(answers) == 2
    assert decoded[0].shape[1] <= 3
    assert decoded[0][:, 0].equal(expected)


class Prepending:
    """As LLaMA's first tokenizers: a space before each text, and every space a mark."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in "_" + text.replace(" ", "_")]}


def test_an_answer_has_the_tokens_that_it_has_behind_its_prompt() -> None:
    assert continuation(Prepending(), ":", " yes") == [ord(letter) for letter in "_yes"]
    assert continuation(Prepending(), "\n", "yes") == [ord(letter) for letter in "yes"]
    assert continuation(Prepending(), "", " yes") == [ord(letter) for letter in "_yes"]
