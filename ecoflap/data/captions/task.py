"""Captioning: written captions against those of annotators, over all pictures and per domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ecoflap.data.captions.layouts import Picture
from ecoflap.data.captions.metrics import CaptionMetrics, require_scorers, scores
from ecoflap.data.captions.options import CaptioningOptions
from ecoflap.data.captions.reading import CaptionSource
from ecoflap.data.example import Example, Generation
from ecoflap.data.sources import picture_sources
from ecoflap.errors import UserError, require_positive
from ecoflap.evaluate.inputs import fingerprint, parts, percent_errors, spread
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.evaluate.protocol import WritesText
from ecoflap.models.core.prunable import PrunableModel

DOMAINS = ("in", "near", "out")


@dataclass(frozen=True)
class Captioning(CaptioningOptions, CaptionSource, WritesText):
    """Write captions and score them."""

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size", "beams", "max_new_tokens")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                f"task.min_new_tokens={self.min_new_tokens} must be 0 to {self.max_new_tokens}, which is"
                " task.max_new_tokens"
            )

    def check_data(self, group: str) -> None:
        """Refuse missing captions, pictures or scorers.

        Raises:
            UserError: if captions, pictures or scorers are missing.
        """
        require_scorers(f"{group}={self.name}")
        self.chosen(group)

    def chosen(self, group: str) -> list[Picture]:
        """The pictures to caption.

        Raises:
            UserError: if some are missing, or the limit is out of range.
        """
        return self.present(spread(self.pictures(group), self.limit, "pictures"), group)

    def load(self, model: PrunableModel) -> CaptioningEvaluation:
        """Read the captions.

        Raises:
            UserError: if the model writes no text, the data set or the scorers are missing, or the limit is
                out of range.
        """
        self.check_model(model)
        metrics = CaptionMetrics.here(f"task={self.name}")
        return CaptioningEvaluation(self, self.chosen("task"), metrics, model.interface)


@dataclass
class CaptioningEvaluation:
    """The task with its captions in memory; call it with a model."""

    task: Captioning
    pictures: list[Picture]
    metrics: CaptionMetrics
    interface: Any

    def _examples(self) -> list[Example]:
        """The pictures, each with its captions in lines; the scorers know no lines within a caption."""
        lines = ("\n".join(" ".join(text.split()) for text in one.captions) for one in self.pictures)
        return [
            Example(self.task.prompt, text, one.image, bare=True)
            for text, one in zip(lines, self.pictures, strict=True)
        ]

    @property
    def sources(self) -> frozenset[str]:
        """The sources of the data, which must not be used for calibration."""
        return picture_sources(one.image for one in self.pictures)

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        generation = {
            "beams": self.task.beams,
            "max_new_tokens": self.task.max_new_tokens,
            "min_new_tokens": self.task.min_new_tokens,
        }
        return {
            **self.metrics.identity(),
            "inputs": fingerprint(self._examples(), self.interface),
            **generation,
        }

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """The metrics, each also per domain (``cider_in``), and the number of pictures.

        Metrics are times 100, so a CIDEr of 100 is 1.0 in papers.
        """
        model.module.eval()
        generation = Generation(self.task.beams, self.task.max_new_tokens, self.task.min_new_tokens)
        examples = self._examples()
        batches = parts(examples, self.task.batch_size)
        captions = prediction_log.run(batches, lambda batch: self.interface.answer(model, batch, generation))
        references = self.metrics.words([one.captions for one in self.pictures])
        predictions = self.metrics.words([[caption] for caption in captions])
        scorers = self.metrics.scorers()
        by_picture: dict[str, list[float]] = {}
        found = scores(scorers, references, predictions, by_picture.__setitem__)
        shown = [Example(target="".join(one.captions[:1]), image=one.image) for one in self.pictures]
        prediction_log.note(Items("cider", by_picture["cider"], answers=captions, examples=shown))
        for domain in DOMAINS:
            rows = [row for row, one in enumerate(self.pictures) if one.domain == domain]
            if rows:  # as for NoCaps, a domain's own references decide which words are rare
                own_references = {row: references[row] for row in rows}
                of_domain = scores(scorers, own_references, {row: predictions[row] for row in rows})
                found |= {f"{name}_{domain}": score for name, score in of_domain.items()}
        return {**found, "pictures": len(captions), **percent_errors(by_picture)}
