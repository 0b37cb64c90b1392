"""VQAv2, OK-VQA and GQA from the Hugging Face hub, in the Parquet copies of lmms-lab.

Models read pictures from files, so the pictures of the chosen questions are written beside the hub's cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.data.hub import load_split
from ecoflap.data.vqa.reading import GQA_OBTAIN, OKVQA, VQAV2, Question, gqa_question
from ecoflap.errors import UserError


@dataclass(frozen=True)
class HubQuestions:
    """A split on the hub.

    Attributes:
        dataset: the id of the data set.
        split: the name of the split.
        question: builds a question from a row and the folder of the pictures.
        obtain: how to get the data set as a folder.
        config: the configuration with the questions; None for the only one.
        pictures: the configuration with the pictures by ``id``; None if each row has its own.
    """

    dataset: str
    split: str
    question: Callable[[dict[str, Any], Path], Question]
    obtain: str
    config: str | None = None
    pictures: str | None = None

    def read(self, option: str) -> list[Question]:
        """Read all questions, in the hub's order; the files of their pictures may be missing still.

        Raises:
            UserError: if the hub can't be reached, or the data set has another format.
        """
        rows, folder = self._load(self.config, option), self._folder()
        if self.pictures is None:
            rows = rows.remove_columns("image")
        try:
            return [self.question(row, folder) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{option}: {self.dataset} is not as expected ({type(error).__name__}: {error}); give a"
                " folder with task.path"
            ) from None

    def write_pictures(self, questions: Iterable[Question], option: str) -> None:
        """Write the missing files of the pictures of some questions.

        Raises:
            UserError: if the hub can't be reached.
        """
        missing = {Path(one.image) for one in questions if not Path(one.image).is_file()}
        if not missing:
            return
        import datasets

        rows = self._load(self.pictures or self.config, option).cast_column(
            "image", datasets.Image(decode=False)
        )
        names = rows["id"] if self.pictures else [one.image for one in self.read(option)]
        for index, name in enumerate(names):
            file = self._folder() / f"{name}.jpg" if self.pictures else Path(name)
            if file in missing:
                _write(file, rows[index]["image"])
                missing.remove(file)

    def _folder(self) -> Path:
        import datasets

        return Path(datasets.config.HF_DATASETS_CACHE) / "ecoflap_pictures" / self.dataset.replace("/", "--")

    def _load(self, config: str | None, option: str) -> Any:
        return load_split(
            self.dataset,
            config,
            self.split,
            asked=f"{option}: {self.dataset} ({self.split})",
            instead="the data set's folder with task.path=FOLDER",
            obtain=self.obtain,
        )


def _write(file: Path, image: dict[str, Any]) -> None:
    """Write a picture of the hub atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_bytes(image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes())
    partial.replace(file)


def _coco(row: dict[str, Any], folder: Path, number: int, answers: list[str]) -> Question:
    image = folder / f"COCO_val2014_{number:012d}.jpg"
    return Question(
        str(row["question_id"]),
        row["question"],
        str(image),
        tuple(answers),
        row["question_type"],
        row["answer_type"],
    )


def _vqav2(row: dict[str, Any], folder: Path) -> Question:
    return _coco(row, folder, row["image_id"], [answer["answer"] for answer in row["answers"]])


def _okvqa(row: dict[str, Any], folder: Path) -> Question:
    """OK-VQA's questions are numbered by their picture, with one more digit."""
    return _coco(row, folder, int(row["question_id"]) // 10, row["answers"])


def _gqa(row: dict[str, Any], folder: Path) -> Question:
    return gqa_question(row["id"], row, folder)


HUB = {
    "vqav2": HubQuestions("lmms-lab/VQAv2", "validation", _vqav2, VQAV2.obtain),
    "okvqa": HubQuestions("lmms-lab/OK-VQA", "val2014", _okvqa, OKVQA.obtain),
    "gqa": HubQuestions(
        "lmms-lab/GQA",
        "testdev",
        _gqa,
        GQA_OBTAIN,
        "testdev_balanced_instructions",
        "testdev_balanced_images",
    ),
}
