"""Easy-VQA's pictures with their names ("blue circle"), read from the answers to their questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.easy_vqa.calibration import read_questions
from ecoflap.data.easy_vqa.options import EasyPicturesOptions
from ecoflap.data.example import Classes, Example
from ecoflap.data.protocol import ShowsPictures
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.prunable import PrunableModel

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


def read_pictures(split: str) -> list[Example]:
    """The pictures of a split with known shape and colour, with their name as target, its class as label."""
    said: dict[str, set[str]] = defaultdict(set)
    for question in read_questions(split):
        if question.text.startswith("what"):
            said[question.image or ""].add(question.target)
    names = {path: _name(answers) for path, answers in said.items()}
    return [
        Example(target=name, image=path, label=NAMES.index(name))
        for path, name in names.items()
        if name is not None
    ]


def _name(answers: set[str]) -> str | None:
    colours, shapes = answers.intersection(COLOURS), answers.intersection(SHAPES)
    return f"{colours.pop()} {shapes.pop()}" if colours and shapes else None


def check_templates(templates: list[str], option: str, names: Collection[str] = ()) -> None:
    """Refuse caption templates without a place for the name.

    Args:
        templates: the templates of the config.
        option: the option that holds them, for the message.
        names: names of sets of templates, such as ``openai``.

    Raises:
        UserError: if a template has no place for the name, or there are no templates.
    """
    if not templates:
        raise UserError(
            f"{option}=[] must hold at least one template, with {{}} where the name goes; null, where it is"
            " allowed, is the set's own"
        )
    for template in set(templates) - set(names):
        if template.count("{}") != 1:
            raise UserError(f"{option}={template!r} must hold {{}} once, where the name goes")


@dataclass(frozen=True)
class EasyPictures(EasyPicturesOptions, ShowsPictures):
    """Pictures of the training split with captions."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        check_templates([self.caption], "calibration.caption")
        check_templates(self.templates, "calibration.templates")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw pictures and encode them.

        Raises:
            UserError: if the model reads no pictures.
        """
        pictures = read_pictures("train")
        chosen = [pictures[index] for index in draw(len(pictures), self.samples, seed)]
        captioned = [
            Example(target=self.caption.format(one.target), image=one.image, label=one.label)
            for one in chosen
        ]
        return self.encoded(model, captioned, Classes(NAMES, tuple(self.templates)))
