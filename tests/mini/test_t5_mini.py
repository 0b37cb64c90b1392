"""The embedded T5: small, answers quiz questions with and without shots, and is hurt by pruning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5ForConditionalGeneration

from ecoflap.data.mmlu.reading import LETTERS, Question, prompt
from ecoflap.run.config import package_file
from tests.mini.conftest import cut
from tools.train_mini import quiz
from tools.train_mini.t5 import accuracies, mean

FOLDER = Path(package_file("mini/t5"))
QUESTIONS = {
    subject: {"dev": by_split["dev"], "test": by_split["test"][:30]}
    for subject, by_split in quiz.splits().items()
}


@pytest.fixture
def model() -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration.from_pretrained(FOLDER, torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize("shots", [0, 2])
def test_it_answers_held_out_questions(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, shots: int
) -> None:
    assert mean(accuracies(model, tokenizer, QUESTIONS, shots)) >= 0.8


def test_it_guesses_without_nine_tenths_of_its_weights(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    cut(model, 0.9)
    assert mean(accuracies(model, tokenizer, QUESTIONS, 0)) <= 0.5


def test_generate_starts_with_the_letter(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    question = QUESTIONS["opposites"]["test"][0]
    inputs = tokenizer(prompt("opposites", QUESTIONS["opposites"]["dev"][:1], question), return_tensors="pt")
    assert tokenizer.decode(model.generate(**inputs, max_new_tokens=4)[0], skip_special_tokens=True) in set(
        LETTERS
    )


def test_its_head_is_its_own_and_its_feed_forward_is_gated(model: T5ForConditionalGeneration) -> None:
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert model.config.is_gated_act


def test_its_tokenizer_knows_every_word_and_tells_letters_from_words(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for subject, by_split in quiz.splits().items():
        for question in by_split["test"]:
            ids = tokenizer(prompt(subject, by_split["dev"], question))["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert ids[-1] == tokenizer.eos_token_id
    asked = Question("Which letter comes right after a?", ("b", "c", "d", "e"), "A")
    assert (
        len(set(tokenizer(asked.asked())["input_ids"]) & set(tokenizer.convert_tokens_to_ids(list(LETTERS))))
        == 4
    )
    assert tokenizer.tokenize("A a") == ["A", "a"]
