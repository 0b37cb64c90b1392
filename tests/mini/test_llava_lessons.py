"""LLaVA's lessons: rows of several questions teach exactly what the questions teach one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests import tiny
from tools.train_mini.llava_lessons import IGNORED, Asked, Row, lesson_of, rows_of, shortened
from tools.train_mini.llava_student import Student, accuracy
from tools.train_mini.pictures import Pictures

PATCHES, FEATURES, END = 3, 5, 2
ROWS = [
    Row(1, [Asked([7, 8, 9], [10, END]), Asked([11], [12, 13, END]), Asked([], [14, 15, END])]),
    Row(0, [Asked([], [20, END]), Asked([7, 8], [21, END])]),
    Row(2, [Asked([30, 31, 32, 33], [34, END])]),
]


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    module: Any = LlamaForCausalLM(LlamaConfig(**tiny.LLAMA, initializer_range=0.5)).eval()
    projector = nn.Linear(FEATURES, module.config.hidden_size)
    return Student(projector, module.model, module.lm_head)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(3, PATCHES, FEATURES, generator=torch.Generator().manual_seed(1))


def alone(student: Student, features: Tensor, asked: Asked) -> Tensor:
    """Logits of one question's answer tokens, read alone, [answer tokens, vocabulary]."""
    words = student.language.embed_tokens(torch.tensor([asked.input_ids], dtype=torch.long))
    sequence = torch.cat([student.projector(features)[None], words], dim=1)
    logits = student.head(student.language(inputs_embeds=sequence).last_hidden_state)[0]
    return logits[-len(asked.answer) :]


def test_a_row_is_its_questions_one_by_one(student: Student, features: Tensor) -> None:
    lesson = lesson_of(ROWS, PATCHES)
    with torch.no_grad():
        logits, labels = student(features[lesson.pictures], lesson)
        start = 0
        for index, row in enumerate(ROWS):
            expected = {}  # place in the row: (logits, label)
            for asked, places in zip(row.asked, row.answers(PATCHES), strict=True):
                for place, own, label in zip(
                    places.tolist(), alone(student, features[row.picture], asked), asked.answer, strict=True
                ):
                    expected[place] = (own, label)
            assert torch.nonzero(lesson.labels[index] != IGNORED).flatten().tolist() == sorted(expected)
            for place in sorted(expected):
                own, label = expected[place]
                torch.testing.assert_close(logits[start], own, atol=1e-5, rtol=1e-5)
                assert labels[start] == label
                start += 1
        assert start == len(labels)


def test_accuracy_counts_answers_that_end(student: Student, features: Tensor) -> None:
    """Answers that the model would write itself are right; each is spoiled at one token in turn."""
    with torch.no_grad():
        rows = [
            Row(row.picture, [written(student, features[row.picture], asked) for asked in row.asked])
            for row in ROWS
        ]
        assert accuracy(student, features, rows) == (1.0, 1.0)
        spoiled = Row(0, [Asked([7, 8], [*rows[1].asked[1].answer[:-1], 3])])
        rows[1] = Row(0, [rows[1].asked[0], spoiled.asked[0]])
        assert accuracy(student, features, rows) == (pytest.approx(3 / 4), 1.0)


def written(student: Student, features: Tensor, asked: Asked) -> Asked:
    """The question with what greedy generation writes, as many tokens as the answer has."""
    answer: list[int] = []
    for _ in asked.answer:
        answer.append(int(alone(student, features, Asked(asked.question, [*answer, END]))[-1].argmax()))
    return Asked(asked.question, answer)


def test_a_shortened_row_fits_and_asks_each_question_once() -> None:
    generator = torch.Generator().manual_seed(0)
    for tokens in (1, 4, 7, 100):
        row = shortened(ROWS[0], tokens, generator)
        assert sum(len(asked.input_ids) for asked in row.asked) <= tokens
        assert all(asked in ROWS[0].asked for asked in row.asked)
        assert len({tuple(asked.input_ids) for asked in row.asked}) == len(row.asked)
    assert len(shortened(ROWS[0], 100, generator).asked) == 3


def test_rows_hold_the_questions_of_a_picture_and_its_caption() -> None:
    words = ["<end>", " a", " blue", " circle", " yes", "is it?", "what?"]

    class Words:
        eos_token_id = 0

        def __call__(self, text: str) -> dict[str, list[int]]:
            parts = [text] if text in words else [f" {word}" for word in text.split()]
            return {"input_ids": [words.index(part) for part in parts]}

    pictures = Pictures(
        torch.zeros(2, 3, 1, 1),
        torch.tensor([[0, 1], [-1, 1]]),
        torch.tensor([3, -1]),  # 3: a blue circle
    )
    questions = (["is it?", "what?", "what?"], ["yes", "circle", "blue"], [0, 0, 1])
    assert rows_of(questions, pictures, Words()) == [
        Row(0, [Asked([5], [4, 0]), Asked([6], [3, 0]), Asked([], [1, 2, 3, 0])]),
        Row(1, [Asked([6], [2, 0])]),
    ]
