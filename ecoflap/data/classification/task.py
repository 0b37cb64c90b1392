"""Classification of pictures, by a classifier's own classes or zero-shot by a text tower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from typing_extensions import override

from ecoflap.data.classes import Classes, check_templates
from ecoflap.data.classification.class_names import OPENAI
from ecoflap.data.classification.options import TaskOptions
from ecoflap.data.classification.reading import Pictures, PictureSource
from ecoflap.data.sources import picture_sources
from ecoflap.errors import require_positive
from ecoflap.evaluate.inputs import commonest, error_of_mean, fingerprint_of, parts, percent, spread
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.evaluate.similarity import five_best
from ecoflap.models.core.protocols import Embeds, NamesClasses, require
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class Classification(TaskOptions, PictureSource):
    """Accuracy on a set of pictures."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "top_5", "macro_f1", "images")

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size")
        self.facts("task")
        if self.templates is not None:
            check_templates(self.templates, "task.templates", (OPENAI,))

    @override
    def check_data(self, option: str) -> None:
        """Refuse pictures that are missing, or fewer than the limit."""
        spread(self.read(option, named=False).examples, self.limit, "pictures")

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that classifies no pictures, or has other classes.

        Raises:
            UserError: if the model classifies no pictures, or its own classes are others.
        """
        self.named(model)

    def named(self, model: PrunableModel) -> tuple[Pictures, dict[int, int]]:
        """All pictures with the class names that the model needs, and {label: index in the model} of classes.

        Raises:
            UserError: if the model classifies no pictures or has other classes, or these have no names.
        """
        own = isinstance(model.interface, NamesClasses)
        if not own:
            require(model, Embeds, f"task={self.name}")
        indexed = own and self.facts("task").indexed
        pictures = self.read("task", named=not indexed, indexed=indexed)
        if not own:
            return pictures, {label: label for label in range(len(pictures.names))}
        return pictures, pictures.labels_in(model.interface.names, f"task={self.name}", indexed)

    def load(self, model: PrunableModel) -> ClassificationEvaluation:
        """List the pictures, which are read batch by batch.

        Raises:
            UserError: if the model classifies no pictures, pictures are missing, or the limit is out of
                range.
        """
        everything, labels = self.named(model)
        pictures = replace(everything, examples=spread(everything.examples, self.limit, "pictures"))
        right = [labels[one.label or 0] for one in pictures.examples]
        classes = None
        if not isinstance(model.interface, NamesClasses):
            classes = Classes(everything.names, self.prompts("task"))
        images = (one.image for one in pictures.examples)
        inputs = fingerprint_of([classes, *right], images, model.interface)
        return ClassificationEvaluation(self, model.interface, pictures, right, classes, inputs)


@dataclass
class ClassificationEvaluation:
    """The task with the paths and classes of its pictures; call it with a model.

    Attributes:
        right: index of each picture's class among the classes that the model chooses from.
        classes: prompts that the text tower reads; None for a classifier's own classes.
        inputs: fingerprint of pictures and classes.
    """

    task: Classification
    interface: Any
    pictures: Pictures
    right: list[int]
    classes: Classes | None
    inputs: str

    @property
    def sources(self) -> frozenset[str]:
        """The sources of the data, which must not be used for calibration."""
        return picture_sources(one.image for one in self.pictures.examples)

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        return {
            "metric": "accuracy of the likeliest class",
            "dataset": self.task.dataset,
            "inputs": self.inputs,
        }

    def chance(self) -> float:
        """The accuracy of naming the commonest class each time, in percent."""
        return commonest(self.right)

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Top-1 and top-5 accuracy and the mean F1 of the classes, in percent, and the number of pictures.

        Raises:
            NumericalError: if a logit or a feature is not finite.
        """
        model.module.eval()
        batches = parts(self.pictures.examples, self.task.batch_size)
        best = prediction_log.run(batches, five_best(model, self.interface, self.classes))
        first = [row[0] for row in best]
        hits = [one == right for one, right in zip(first, self.right, strict=True)]
        prediction_log.note(self._items(first, hits))
        return {
            "accuracy": percent(hits),
            "top_5": percent([right in row for row, right in zip(best, self.right, strict=True)]),
            "macro_f1": macro_f1(first, self.right),
            "images": len(best),
            "accuracy_stderr": 100 * error_of_mean(hits),
        }

    def _items(self, found: Sequence[int], hits: Sequence[bool]) -> Items:
        names = self.interface.names if self.classes is None else self.classes.names
        examples = [
            replace(one, target=names[right])
            for one, right in zip(self.pictures.examples, self.right, strict=True)
        ]
        return Items("accuracy", hits, answers=[names[one] for one in found], examples=examples)


def macro_f1(found: Sequence[int], right: Sequence[int]) -> float:
    """The mean F1 in percent over all classes with pictures."""
    hits = Counter(guess for guess, label in zip(found, right, strict=True) if guess == label)
    guessed, there = Counter(found), Counter(right)
    scores = [2 * hits[one] / (guessed[one] + there[one]) for one in there]
    return 100 * sum(scores) / len(scores) if scores else float("nan")
