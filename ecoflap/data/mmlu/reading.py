"""Multiple-choice questions: MMLU's own from the hub, or any in its folder layout.

The layout is ``<split>/<subject>_<split>.csv``, with rows of question, four options and a letter.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ecoflap.data.folder import read_text
from ecoflap.data.hub import load_split
from ecoflap.errors import UserError

log = logging.getLogger(__name__)

LETTERS = ("A", "B", "C", "D")
HUB = "cais/mmlu"
HUB_SPLITS = {"val": "validation", "train": "auxiliary_train"}  # other splits have the same name there
OBTAIN = (
    f"MMLU (MIT licence) is {HUB} on the Hugging Face hub, which is read without a path while online; its"
    " folders are in data.tar, at the address that github.com/hendrycks/test gives."
)


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    Attributes:
        text: the question.
        options: the four answers, A to D.
        answer: the right letter.
    """

    text: str
    options: tuple[str, ...]
    answer: str

    def asked(self) -> str:
        """Question and options, up to the letter of the answer."""
        options = "".join(
            f"\n{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True)
        )
        return f"{self.text}{options}\nAnswer:"


def prompt(subject: str, shots: Sequence[Question], question: Question) -> str:
    """The prompt of the MMLU harness: heading (with its double space), answered examples, and question.

    Questions of no subject, as those of the hub's auxiliary_train, have no heading.
    """
    about = subject.replace("_", " ")
    heading = f"The following are multiple choice questions (with answers) about  {about}.\n\n"
    return (
        (heading if subject else "")
        + "".join(f"{shot.asked()} {shot.answer}\n\n" for shot in shots)
        + question.asked()
    )


def question_sources(questions: Iterable[Question]) -> frozenset[str]:
    """The source of each question: its words, independent of the file."""
    return frozenset(f"the question {one.asked()!r}" for one in questions)


def read_subjects(folder: str | None, split: str, option: str) -> dict[str, list[Question]]:
    """Read {subject: its questions} of a split, sorted by subject.

    Args:
        folder: the folder of the splits; None for MMLU from the hub.
        split: dev, val, test, ...
        option: the config group of the part, for messages.

    Raises:
        UserError: if the folder has no such split, or a row is not a question.
    """
    if folder is None:
        return _read_hub(split, option)
    files = sorted((Path(folder).expanduser() / split).glob(f"[!.]*_{split}.csv"))
    if not files:
        raise UserError(
            f"{option}.path={folder} has no {split}/*_{split}.csv; give MMLU's data folder or one of its"
            f" layout. {OBTAIN}"
        )
    subjects = {file.name.removesuffix(f"_{split}.csv"): _read_file(file) for file in files}
    if not any(subjects.values()):
        raise UserError(
            f"{option}.path={folder}: the files of the split {split} hold no questions; download them again."
            f" {OBTAIN}"
        )
    return subjects


def read_with_shots(
    folder: str | None, split: str, shots: int, option: str
) -> tuple[dict[str, list[Question]], dict[str, list[Question]]]:
    """The questions of the dev split, which are the answered examples, and those of a split, by subject.

    Args:
        folder: the folder of the splits; None for the hub.
        split: of the questions to ask.
        shots: answered examples per question; without any, the dev split is not read.
        option: the config group of the part, for messages.

    Raises:
        UserError: if questions are missing or damaged, or a subject has no answered examples.
    """
    dev = read_subjects(folder, "dev", option) if shots else {}
    subjects = read_subjects(folder, split, option)
    if shots:
        _require_shots(folder, subjects, dev, option)
    return dev, subjects


def _require_shots(
    folder: str | None,
    subjects: Mapping[str, Sequence[Question]],
    dev: Mapping[str, Sequence[Question]],
    option: str,
) -> None:
    for subject, questions in subjects.items():
        if questions and not subject:
            raise UserError(
                f"{option}.shots: the split has questions of no subject, to which no answered examples"
                f" belong; set {option}.shots=0"
            )
        if questions and not dev.get(subject):
            place = f"{HUB} (dev)" if folder is None else f"{folder}/dev/{subject}_dev.csv"
            raise UserError(
                f"{option}.shots: {subject!r} has no answered examples, which are to come from {place}; add"
                f" them, or set {option}.shots=0"
            )


def warn_of_few_shots(
    subjects: Mapping[str, Sequence[Question]], dev: Mapping[str, Sequence[Question]], shots: int, option: str
) -> None:
    """Warn if a subject has fewer answered examples than asked for.

    Args:
        subjects: the questions to ask.
        dev: the answered examples.
        shots: how many are asked for per question.
        option: the config group of the part, for the message.
    """
    there, subject = min((len(dev.get(one, ())), one) for one, questions in subjects.items() if questions)
    if there < shots:
        message = "%s.shots=%d was asked for and the dev split has only %d of %s"
        log.warning(message, option, shots, there, subject)


def _read_hub(split: str, option: str) -> dict[str, list[Question]]:
    rows = load_split(
        HUB,
        "all",
        HUB_SPLITS.get(split, split),
        asked=f"{option}: {HUB} ({split})",
        instead=f"MMLU's data folder with {option}.path=FOLDER",
        obtain=OBTAIN,
    )
    subjects: dict[str, list[Question]] = {}
    for row in rows:
        subjects.setdefault(row["subject"], []).append(
            Question(row["question"], tuple(row["choices"]), LETTERS[row["answer"]])
        )
    return dict(sorted(subjects.items()))


def _read_file(file: Path) -> list[Question]:
    rows = csv.reader(StringIO(read_text(file), newline=""), strict=True)
    try:
        return [_question(row, f"{file}, row {number}") for number, row in enumerate(rows, start=1)]
    except csv.Error as error:
        raise UserError(
            f"{file} can't be read as CSV ({error}); look for a quote that isn't closed"
        ) from None


def _question(row: Sequence[str], where: str) -> Question:
    if len(row) != 6 or row[5] not in LETTERS:
        raise UserError(
            f"{where}: expected question, four options and a letter A to D, found {len(row)} columns: {row}"
        )
    return Question(row[0], tuple(row[1:5]), row[5])
