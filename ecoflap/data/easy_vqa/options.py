"""Options of the data sets made of Easy-VQA: calibration and tasks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EasyVqaCalibrationOptions:
    """Calibration on questions of the training split, with their answers.

    Attributes:
        samples: number of questions.
        name: what logs and result files call it.
    """

    samples: int = 128
    name: str = "easy_vqa"


@dataclass(frozen=True)
class EasyPicturesOptions:
    """Calibration on pictures of the training split, with captions.

    Attributes:
        samples: number of pictures.
        caption: what captions are made of, with one ``{}`` for the picture's name, such as "blue circle".
        templates: prompts of the text classifier, for models that are scored by classification.
        name: what logs and result files call it.
    """

    samples: int = 128
    caption: str = "a photo of a {}."
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    name: str = "easy_pictures"


@dataclass(frozen=True)
class EasyVqaTaskOptions:
    """Answers to the held-out questions.

    Attributes:
        limit: number of questions, evenly spaced over the split; null for all 9,673.
        batch_size: questions per generation; changes nothing beyond rounding.
        beams: width of the beam search; 1 is greedy.
        max_new_tokens: length of the longest answer, in tokens.
        length_penalty: exponent of the length in the score of a beam; below 0 prefers short answers.
        name: what logs and result files call it.
    """

    limit: int | None = None
    batch_size: int = 256
    beams: int = 1
    max_new_tokens: int = 4
    length_penalty: float = 1.0
    name: str = "easy_vqa"


@dataclass(frozen=True)
class PictureTaskOptions:
    """What the tasks on the pictures share.

    Attributes:
        limit: number of pictures, evenly spaced; null for all.
        batch_size: pictures per forward pass.
    """

    limit: int | None = None
    batch_size: int = 128


@dataclass(frozen=True)
class EasyClassificationOptions(PictureTaskOptions):
    """Accuracy of a classifier's own classes or, zero-shot, of a text tower's.

    Attributes:
        limit: number of pictures, evenly spaced; null for all.
        batch_size: pictures per forward pass.
        templates: prompts of the text classifier, each with one ``{}``.
        name: what logs and result files call it.
    """

    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    name: str = "easy_classification"


@dataclass(frozen=True)
class EasyCaptionsOptions(PictureTaskOptions):
    """Share of written captions that name the right shape and colour.

    Attributes:
        limit: number of pictures, evenly spaced; null for all.
        batch_size: pictures per generation.
        beams: width of the beam search; 1 is greedy.
        max_new_tokens: length of the longest caption, in tokens.
        name: what logs and result files call it.
    """

    beams: int = 1
    max_new_tokens: int = 8
    name: str = "easy_captions"


@dataclass(frozen=True)
class EasyRetrievalOptions(PictureTaskOptions):
    """Retrieval between pictures and the 24 captions.

    Attributes:
        limit: number of pictures, evenly spaced; null for all.
        batch_size: pictures or pairs per forward pass.
        caption: what captions are made of, with one ``{}`` for the picture's name, such as "blue circle".
        rerank: how many of the best candidates are ranked again by a pass over picture and text together, if
            the model has one; 0 for none.
        name: what logs and result files call it.
    """

    caption: str = "a photo of a {}."
    rerank: int = 8
    name: str = "easy_retrieval"
