"""Calibration on multiple-choice questions, with the letters of their answers."""

from __future__ import annotations

from dataclasses import dataclass

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.example import Example
from ecoflap.data.mmlu.options import MmluCalibrationOptions
from ecoflap.data.mmlu.reading import prompt, question_sources, read_with_shots, warn_of_few_shots
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.encoding import encode_all, require_encoder
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class Mmlu(MmluCalibrationOptions):
    """Questions with their letters, of a split that is not the test's."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        if self.shots < 0:
            raise UserError(f"calibration.shots={self.shots} must be at least 0")
        if self.split == "test":
            raise UserError(
                "calibration.split=test: the test questions are what the model is measured on; choose val,"
                " dev or train"
            )

    def check_data(self, group: str) -> None:
        """Refuse questions that are missing or damaged.

        Raises:
            UserError: if questions are missing or damaged.
        """
        read_with_shots(self.path, self.split, self.shots, group)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that reads no text with a target.

        Raises:
            UserError: if the model reads no text with a target.
        """
        require_encoder(model, f"calibration={self.name}", pictures=False)

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw questions over all subjects.

        Raises:
            UserError: if there are no questions, or the model reads no text with a target.
        """
        self.check_model(model)
        dev, subjects = read_with_shots(self.path, self.split, self.shots, "calibration")
        warn_of_few_shots(subjects, dev, self.shots, "calibration")
        questions = [(subject, question) for subject, all_of_it in subjects.items() for question in all_of_it]
        chosen = [questions[index] for index in draw(len(questions), self.samples, seed)]
        shots = [  # split=dev has the question itself among them
            [one for one in dev.get(subject, []) if one != asked][: self.shots] for subject, asked in chosen
        ]
        examples = [
            Example(prompt(subject, answered, asked), asked.answer)
            for (subject, asked), answered in zip(chosen, shots, strict=True)
        ]
        read = [one for (_, asked), answered in zip(chosen, shots, strict=True) for one in (asked, *answered)]
        return CalibrationSet(
            self.name, encode_all(model, examples, f"calibration={self.name}"), question_sources(read)
        )
