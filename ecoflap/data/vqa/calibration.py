"""VQAv2's training split as calibration data; its other splits hold other pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ecoflap.data.calibration_set import CalibrationSet, draw, require_train
from ecoflap.data.folder import require_images
from ecoflap.data.protocol import ShowsPictures
from ecoflap.data.vqa.options import VqaV2CalibrationOptions
from ecoflap.data.vqa.reading import VQAV2, Question, clean_question, read_coco_questions
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class VqaV2(VqaV2CalibrationOptions, ShowsPictures):
    """Questions about COCO's train2014 with the answer that most annotators gave."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        require_train(self.split)

    def check_data(self, group: str) -> None:
        """Refuse questions that are missing or damaged.

        Raises:
            UserError: if questions are missing or damaged.
        """
        self.questions(group)

    def questions(self, group: str) -> list[Question]:
        """All questions of the split.

        Raises:
            UserError: if they are missing, or there are none.
        """
        found = read_coco_questions(VQAV2, self.path, self.split, group)
        if not found:
            raise UserError(
                f"{group}.path={self.path}: the files hold no questions; download them again. {VQAV2.obtain}"
            )
        return found

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw questions and encode them.

        Raises:
            UserError: if files or pictures are missing, or the model reads no questions.
        """
        self.check_model(model)
        questions = self.questions("calibration")
        chosen = [questions[index].example() for index in draw(len(questions), self.samples, seed)]
        require_images((one.image or "" for one in chosen), f"calibration={self.name}", VQAV2.obtain)
        asked = [replace(one, text=clean_question(one.text)) for one in chosen] if self.clean else chosen
        return self.encoded(model, asked)
