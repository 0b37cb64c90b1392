"""The multiple-choice questions: the same every time, in MMLU's form, no question in two splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoflap.data.mmlu.reading import LETTERS, Question, read_subjects
from ecoflap.run.config import package_file
from tools.train_mini import quiz

SPLITS = quiz.splits()


def test_it_makes_the_same_questions_every_time() -> None:
    assert quiz.splits() == SPLITS
    assert SPLITS["addition"]["dev"][0] == Question("What is 1 plus 3?", ("11", "0", "4", "9"), "C")


@pytest.mark.parametrize("subject", SPLITS)
def test_a_subject_has_enough_questions_and_shares_none_between_splits(subject: str) -> None:
    by_split = SPLITS[subject]
    assert len(by_split["dev"]) == 5
    assert len(by_split["test"]) == 100
    assert len(by_split["train"]) > 1000
    questions = [quiz.identity(question) for questions in by_split.values() for question in questions]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("subject", SPLITS)
def test_the_letters_are_even_and_the_options_differ(subject: str) -> None:
    questions = SPLITS[subject]["train"] + SPLITS[subject]["test"]
    assert all(len(set(question.options)) == 4 for question in questions)
    for letter in LETTERS:
        assert 0.2 < sum(question.answer == letter for question in questions) / len(questions) < 0.3


def test_the_answers_are_right() -> None:
    for question in SPLITS["addition"]["test"]:
        left, right = (int(word) for word in question.text.rstrip("?").split() if word.isdigit())
        assert int(question.options[LETTERS.index(question.answer)]) == left + right
    for question in SPLITS["comparison"]["test"]:
        best = max if "largest" in question.text else min
        assert int(question.options[LETTERS.index(question.answer)]) == best(map(int, question.options))
    for question in SPLITS["counting"]["test"]:
        assert int(question.options[LETTERS.index(question.answer)]) == len(
            question.text.split(": ")[1].split()
        )


def test_the_folder_reads_back_as_mmlus(tmp_path: Path) -> None:
    quiz.write_mmlu(tmp_path)
    assert len(list(tmp_path.rglob("*.csv"))) == 3 * len(SPLITS)
    for split in ("dev", "test", "train"):
        assert read_subjects(str(tmp_path), split, "task") == {
            subject: by_split[split] for subject, by_split in SPLITS.items()
        }


def test_the_embedded_folder_holds_these_questions(tmp_path: Path) -> None:
    quiz.write_mmlu(tmp_path)
    embedded = Path(package_file("mini/quiz_questions"))
    for file in tmp_path.rglob("*.csv"):
        assert (embedded / file.relative_to(tmp_path)).read_bytes() == file.read_bytes()
