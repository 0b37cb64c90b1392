"""Training splits of VQAv2 and NLVR2 as calibration data; their own other splits hold other pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ecoflap.calibrate.samples import CalibrationSet, draw
from ecoflap.data.folder import require_files, require_images
from ecoflap.data.nlvr2 import OBTAIN, read_pairs
from ecoflap.data.sources import picture_sources
from ecoflap.data.vqa import VQAV2, Question, clean_question, read_coco_questions
from ecoflap.errors import UserError, require_positive
from ecoflap.models.encoding import encode_all, require_encoder
from ecoflap.models.prunable import PrunableModel
from ecoflap.models.skills import Classifies, require


def require_train(split: str) -> None:
    """Refuse to calibrate on what a model is measured on.

    Raises:
        UserError: the split is not the training split.
    """
    if split != "train":
        raise UserError(f"calibration.split={split}: models are measured on the other splits; choose train, whose pictures are in none of them")


@dataclass(frozen=True)
class VqaV2:
    """Questions about COCO's train2014 with the answer that most annotators gave.

    Attributes:
        path: folder with the published files and pictures; null names what is needed.
        split: train; no other one is taken.
        clean: ask in lower case and without most punctuation, as ``task=vqav2`` does.
        samples: number of questions.
        name: for people and result files.
    """

    path: str | None = None
    split: str = "train"
    clean: bool = True
    samples: int = 128
    name: str = "vqav2"

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        require_train(self.split)

    def locate(self, option: str) -> Path:
        """The data set's folder, when its questions are in it.

        Raises:
            UserError: they aren't.
        """
        return require_files(self.path, VQAV2.questions.format(split=self.split), option, self.name, VQAV2.obtain)

    def check_data(self, group: str) -> None:
        """Refuse questions that aren't there, or are damaged.

        Raises:
            UserError: if questions aren't there, or are damaged.
        """
        self.questions(group)

    def questions(self, group: str) -> list[Question]:
        """All questions of the split.

        Raises:
            UserError: they aren't there, or there are none.
        """
        found = read_coco_questions(VQAV2, self.path, self.split, group)
        if not found:
            raise UserError(f"{group}.path={self.path}: the files hold no questions; download them again. {VQAV2.obtain}")
        return found

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that reads no questions about pictures.

        Raises:
            UserError: if the model reads no questions about pictures.
        """
        require_encoder(model, f"calibration={self.name}", pictures=True)

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw questions and make model inputs of them.

        Raises:
            UserError: files or pictures are missing, or the model reads no questions.
        """
        self.check_model(model)
        questions = self.questions("calibration")
        chosen = [questions[index].example() for index in draw(len(questions), self.samples, seed)]
        require_images((one.image or "" for one in chosen), f"calibration={self.name}", VQAV2.obtain)
        asked = [replace(one, text=clean_question(one.text)) for one in chosen] if self.clean else chosen
        return CalibrationSet(self.name, encode_all(model, asked, f"calibration={self.name}"), picture_sources(one.image for one in chosen))


@dataclass(frozen=True)
class Nlvr2:
    """Sentences about two pictures, and whether they are true.

    Attributes:
        path: folder with the published files and pictures; null names what is needed.
        split: train; no other one is taken.
        samples: number of sentences.
        name: for people and result files.
    """

    path: str | None = None
    split: str = "train"
    samples: int = 128
    name: str = "nlvr2"

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        require_train(self.split)

    def locate(self, option: str) -> Path:
        """The data set's folder, when its sentences are in it.

        Raises:
            UserError: they aren't.
        """
        return require_files(self.path, f"{self.split}.json", option, self.name, OBTAIN)

    def check_data(self, group: str) -> None:
        """Refuse sentences that aren't there, or are damaged.

        Raises:
            UserError: if sentences aren't there, or are damaged.
        """
        read_pairs(self.path, self.split, group)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that does not classify: one that writes would look at the first picture only.

        Raises:
            UserError: if the model does not classify.
        """
        require(model, Classifies, f"calibration={self.name}")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw sentences and make model inputs of them.

        Raises:
            UserError: files or pictures are missing, or the model does not classify.
        """
        self.check_model(model)
        pairs = read_pairs(self.path, self.split, "calibration")
        chosen = [pairs[index] for index in draw(len(pairs), self.samples, seed)]
        images = [image for one in chosen for image in (one.image, one.second_image) if image is not None]
        require_images(images, f"calibration={self.name}", OBTAIN)
        return CalibrationSet(self.name, encode_all(model, chosen, f"calibration={self.name}"), picture_sources(images))
