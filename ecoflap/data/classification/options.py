"""Options of classification: which pictures, calibration and task."""

from __future__ import annotations

from dataclasses import dataclass, field

from ecoflap.data.classification.clip_sets import SETS


@dataclass(frozen=True)
class PictureSourceOptions:
    """Which pictures, and the names of their classes.

    Attributes:
        dataset: the set; image_folder for pictures of your own.
        split: split of the set: train, val or test.
        path: folder that holds the set's folder under CoOp's name, or that folder itself.
        classes: names of the classes: open_clip or torchvision for ImageNet's, or a text file with a line for
            each ("NAME", or "FOLDER NAME"); null for those of the split file or the folders.
        templates: prompts of the text classifier, each with one ``{}``; openai among them stands for OpenAI's
            80; null for the set's own.
    """

    dataset: str = field(metadata={"choices": tuple(SETS)})
    split: str
    path: str | None = None
    classes: str | None = None
    templates: list[str] | None = None


@dataclass(frozen=True)
class CalibrationOptions(PictureSourceOptions):
    """Calibration on pictures of the training split.

    Attributes:
        samples: number of pictures.
        caption: what a picture's caption is made of, with one ``{}`` for its class's name; null for the set's
            prompt.
        name: what logs and result files call it.
    """

    samples: int = 128
    caption: str | None = None
    name: str = "classification"


@dataclass(frozen=True)
class TaskOptions(PictureSourceOptions):
    """Accuracy on a set of pictures.

    Attributes:
        limit: number of pictures, evenly spaced; null for all.
        batch_size: pictures per forward pass.
        name: what logs and result files call it.
    """

    limit: int | None = None
    batch_size: int = 128
    name: str = "classification"
