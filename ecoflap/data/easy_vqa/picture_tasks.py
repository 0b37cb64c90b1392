"""Tasks on Easy-VQA's held-out pictures of 24 things: classification, captioning and retrieval."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.data.classes import Classes, check_templates
from ecoflap.data.classification.class_names import own_labels
from ecoflap.data.easy_vqa.options import (
    EasyCaptionsOptions,
    EasyClassificationOptions,
    EasyRetrievalOptions,
    PictureTaskOptions,
)
from ecoflap.data.easy_vqa.reading import NAMES, read_pictures
from ecoflap.data.example import Example, Generation
from ecoflap.data.sources import picture_sources
from ecoflap.errors import UserError, require_positive
from ecoflap.evaluate.inputs import error_of_mean, fingerprint, parts, percent, percent_errors, spread
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.evaluate.protocol import WritesText
from ecoflap.evaluate.similarity import five_best, similarity
from ecoflap.models.core.logits import finite
from ecoflap.models.core.protocols import Embeds, Matches, NamesClasses, require
from ecoflap.models.core.prunable import PrunableModel


@dataclass
class PictureEvaluation:
    """A task with its pictures in memory; call it with a model."""

    task: Any
    pictures: list[Example]
    interface: Any

    @property
    def sources(self) -> frozenset[str]:
        """The sources of the data, which must not be used for calibration."""
        return picture_sources(one.image for one in self.pictures)

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        return {
            "inputs": fingerprint(self.pictures, self.interface),
            **{key: value for key, value in vars(self.task).items() if key != "batch_size"},
        }

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """The task's metrics, in percent, and the number of pictures.

        Raises:
            NumericalError: if a feature or a logit is not finite.
        """
        model.module.eval()
        return {
            **self.task.measure(model, self.pictures, self.interface, prediction_log),
            "pictures": len(self.pictures),
        }


@dataclass(frozen=True)
class PictureTask(PictureTaskOptions, ABC):
    """A task on the pictures."""

    def check_data(self, group: str) -> None:
        """Refuse a limit above the number of pictures.

        Raises:
            UserError: if the limit is above the number of pictures.
        """
        spread(read_pictures("test"), self.limit, "pictures")

    @abstractmethod
    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that can't do the task.

        Raises:
            UserError: if the model can't.
        """

    def load(self, model: PrunableModel) -> PictureEvaluation:
        """Read the pictures.

        Raises:
            UserError: if the model can't do what is needed, or the limit is out of range.
        """
        self.check_model(model)
        return PictureEvaluation(self, spread(read_pictures("test"), self.limit, "pictures"), model.interface)


@dataclass(frozen=True)
class EasyClassification(EasyClassificationOptions, PictureTask):
    """Top-1 and top-5 accuracy, of a classifier's own classes or, zero-shot, of a text tower's."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "top_5", "pictures")

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size")
        check_templates(self.templates, "task.templates")

    @override
    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that classifies no pictures, or has other classes."""
        if isinstance(model.interface, NamesClasses):
            own_labels(model.interface.names, NAMES, f"task={self.name}", indexed=False)
        else:
            require(model, Embeds, f"task={self.name}")

    def measure(
        self, model: PrunableModel, pictures: Sequence[Example], interface: Any, prediction_log: PredictionLog
    ) -> dict[str, float]:
        """Accuracy in percent."""
        batches, own = parts(pictures, self.batch_size), isinstance(interface, NamesClasses)
        names = list(interface.names if own else NAMES)
        classes = None if own else Classes(NAMES, tuple(self.templates))
        found = prediction_log.run(batches, five_best(model, interface, classes))
        labels = own_labels(names, NAMES, f"task={self.name}", indexed=False)
        right = torch.tensor([labels[one.label or 0] for one in pictures])
        best = torch.tensor(found) == right[:, None]
        first, answers = best[:, 0].tolist(), [names[row[0]] for row in found]
        prediction_log.note(Items("accuracy", first, answers=answers, examples=pictures))
        return {
            "accuracy": percent(first),
            "top_5": percent(best.any(dim=-1).tolist()),
            "accuracy_stderr": 100 * error_of_mean(first),
        }


@dataclass(frozen=True)
class EasyCaptions(EasyCaptionsOptions, WritesText, PictureTask):
    """Share of captions that name shape and colour right."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "pictures")

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size", "beams", "max_new_tokens")

    def measure(
        self, model: PrunableModel, pictures: Sequence[Example], interface: Any, prediction_log: PredictionLog
    ) -> dict[str, float]:
        """Accuracy in percent."""
        generation, batches = Generation(self.beams, self.max_new_tokens), parts(pictures, self.batch_size)
        captions = prediction_log.run(batches, lambda batch: interface.answer(model, batch, generation))
        right = [f" {one.target}" in f" {text.lower()}" for one, text in zip(pictures, captions, strict=True)]
        prediction_log.note(Items("accuracy", right, answers=captions, examples=pictures))
        return {"accuracy": percent(right), "accuracy_stderr": 100 * error_of_mean(right)}


@dataclass(frozen=True)
class EasyRetrieval(EasyRetrievalOptions, PictureTask):
    """Recall at 1 from pictures to the 24 captions and back, by contrast and then by matching."""

    metrics: ClassVar[tuple[str, ...]] = (
        "text_recall_1",
        "image_recall_1",
        "text_recall_1_match",
        "image_recall_1_match",
        "pictures",
    )

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size")
        check_templates([self.caption], "task.caption")
        if not 0 <= self.rerank <= len(NAMES):
            raise UserError(f"task.rerank={self.rerank} must be 0 to {len(NAMES)}, the number of captions")

    @override
    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that retrieves no pictures."""
        require(model, Embeds, f"task={self.name}")

    def measure(
        self, model: PrunableModel, pictures: Sequence[Example], interface: Any, prediction_log: PredictionLog
    ) -> dict[str, float]:
        """Recall in percent; the best picture for a caption is right if it shows what the caption says."""
        captions, paths = [self.caption.format(name) for name in NAMES], [one.image for one in pictures]
        texts = interface.embed_texts(model, captions)
        batches = parts(paths, self.batch_size)
        similarities = [similarity(interface.embed_images(model, part), texts) for part in batches]
        scores = finite(torch.cat(similarities))
        labels = torch.tensor([one.label for one in pictures])
        found, best = _recalls(scores, labels), scores.argmax(dim=1)
        answers = [captions[place] for place in best.tolist()]
        right = (best == labels).tolist()
        prediction_log.note(Items("text_recall_1", right, answers=answers, examples=pictures))
        if not self.rerank or not isinstance(interface, Matches):
            return found
        rows, columns = self._closest(scores)
        pairs = parts(list(zip(rows, columns, strict=True)), self.batch_size)
        of_pairs = PredictionLog(prediction_log.file, [prediction_log.key, columns])
        logits = of_pairs.run(
            pairs,
            lambda part: interface.match(
                model, [paths[row] for row, _ in part], [captions[c] for _, c in part]
            ).tolist(),
        )
        # Above all pairs that were not matched; beside 1000, fp32 would round small differences away.
        scores = scores.double()
        scores[rows, columns] += 1e3 + finite(torch.tensor(logits, dtype=torch.float64))
        return found | _recalls(scores, labels, "_match")

    def _closest(self, scores: Tensor) -> tuple[list[int], list[int]]:
        """(pictures, captions) of the pairs to match: the best captions of each picture."""
        columns = scores.topk(self.rerank, dim=1).indices
        return [row for row in range(len(scores)) for _ in range(self.rerank)], columns.flatten().tolist()


def _recalls(scores: Tensor, labels: Tensor, suffix: str = "") -> dict[str, float]:
    """Recall at 1 of both directions in percent, with their standard errors."""
    asked = [label for label in range(scores.shape[1]) if (labels == label).any()]
    hits = {
        f"text_recall_1{suffix}": (scores.argmax(dim=1) == labels).tolist(),
        f"image_recall_1{suffix}": [bool(labels[scores[:, label].argmax()] == label) for label in asked],
    }
    return {name: percent(values) for name, values in hits.items()} | percent_errors(hits)
