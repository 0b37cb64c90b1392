"""Recall of captions and pictures as for BLIP: ranked by contrast (ITC), the best again by matching (ITM)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoflap.console.progress import track
from ecoflap.data.captions.layouts import Picture
from ecoflap.data.captions.options import RetrievalOptions
from ecoflap.data.captions.ranking import RANKS, Found, nearest, rank_again, recall_errors, recalls, search
from ecoflap.data.captions.reading import CaptionSource, clean
from ecoflap.data.example import Example
from ecoflap.data.sources import picture_sources
from ecoflap.errors import require_positive
from ecoflap.evaluate.inputs import fingerprint, parts, spread
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.evaluate.similarity import similarity
from ecoflap.models.core.logits import finite
from ecoflap.models.core.protocols import Embeds, Matches, require
from ecoflap.models.core.prunable import PrunableModel

BLOCK = 2**25  # similarities in memory at once


@dataclass(frozen=True)
class Retrieval(RetrievalOptions, CaptionSource):
    """Retrieve captions by pictures, and pictures by captions."""

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size")
        if self.k_test:
            require_positive("task", self, "k_test")

    def check_data(self, group: str) -> None:
        """Refuse missing captions or pictures.

        Raises:
            UserError: if captions or pictures are missing.
        """
        self.chosen(group)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that retrieves no pictures.

        Raises:
            UserError: if the model finds no pictures.
        """
        require(model, Embeds, f"task={self.name}")

    def chosen(self, group: str) -> list[Picture]:
        """The pictures to retrieve.

        Raises:
            UserError: if some are missing, or the limit is out of range.
        """
        return self.present(spread(self.pictures(group), self.limit, "pictures"), group)

    def load(self, model: PrunableModel) -> RetrievalEvaluation:
        """Read the captions.

        Raises:
            UserError: if the model retrieves no pictures, the data set is missing, or the limit is out of
                range.
        """
        self.check_model(model)
        pictures = self.chosen("task")
        captions = [[clean(caption) for caption in one.captions] for one in pictures]
        return RetrievalEvaluation(self, [one.image for one in pictures], captions, model.interface)


@dataclass
class RetrievalEvaluation:
    """The task with its captions in memory; call it with a model.

    Attributes:
        images: the paths of the pictures.
        captions: those of each picture, at least one.
    """

    task: Retrieval
    images: list[str]
    captions: list[list[str]]
    interface: Any

    @cached_property
    def texts(self) -> list[str]:
        """All captions, picture by picture."""
        return [text for texts in self.captions for text in texts]

    @cached_property
    def owner(self) -> Tensor:
        """The index of the picture that each caption belongs to, [captions]."""
        return torch.tensor([index for index, texts in enumerate(self.captions) for _ in texts])

    @property
    def sources(self) -> frozenset[str]:
        """The sources of the data, which must not be used for calibration."""
        return picture_sources(self.images)

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        examples = [
            Example(target="\n".join(texts), image=image)
            for texts, image in zip(self.captions, self.images, strict=True)
        ]
        return {
            "metric": "recall of captions and pictures",
            "k_test": self.task.k_test,
            "inputs": fingerprint(examples, self.interface),
        }

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Recall at 1, 5 and 10 of captions and of pictures, and their means, in percent.

        If the model can match pictures with texts, the recall after matching comes first.

        Raises:
            NumericalError: if a feature or a logit is not finite.
        """
        model.module.eval()
        images = self._features(self.images, lambda part: self.interface.embed_images(model, part))
        texts = self._features(self.texts, lambda part: self.interface.embed_texts(model, part))
        by_image, by_text = self._search(images, texts)
        self._write_nearest(prediction_log, by_image.best, by_text.best)
        ranks = {"": (by_image.ranks, by_text.ranks)}
        if self.task.k_test and isinstance(self.interface, Matches):
            logits = self._match(model, prediction_log, by_image.best, by_text.best)
            ranks = {"_match": (rank_again(by_image, logits[0]), rank_again(by_text, logits[1])), **ranks}
            by_image = replace(by_image, scores=by_image.scores + logits[0])
        self._note(prediction_log, by_image, *next(iter(ranks.items())))
        found: dict[str, float] = {}
        errors: dict[str, float] = {}
        for suffix, both in ranks.items():
            found |= recalls(*both, suffix)
            errors |= recall_errors(*both, self.owner, suffix)
        return {**found, "pictures": len(images), "captions": len(texts), **errors}

    def _search(self, images: Tensor, texts: Tensor) -> tuple[Found, Found]:
        """The nearest captions of each picture, and the nearest pictures of each caption.

        Args:
            images: features of the pictures, [pictures, features] or [pictures, queries, features].
            texts: features of the captions, [captions, features].
        """
        pictures, queries = torch.arange(len(images)), images[0].numel() // images.shape[-1]
        k = max(self.task.k_test, 1)
        sizes = [max(1, BLOCK // (queries * len(candidates))) for candidates in (texts, images)]
        by_image = search(lambda rows: similarity(images[rows], texts), pictures, self.owner, k, sizes[0])
        by_text = search(lambda rows: similarity(images, texts[rows]).t(), self.owner, pictures, k, sizes[1])
        return by_image, by_text

    def _note(
        self, prediction_log: PredictionLog, found: Found, suffix: str, ranks: tuple[Tensor, Tensor]
    ) -> None:
        """Note whether each picture finds one of its captions first, and the caption that it finds."""
        first = (ranks[0] < 1).tolist()
        answers = [self.texts[best] for best in nearest(found).tolist()]
        examples = [
            Example(target=texts[0], image=image)
            for texts, image in zip(self.captions, self.images, strict=True)
        ]
        prediction_log.note(Items(f"text_recall_1{suffix}", first, answers=answers, examples=examples))

    def _features(self, items: Sequence[str], embed: Callable[[list[str]], Tensor]) -> Tensor:
        batches = parts(items, self.task.batch_size)
        return finite(torch.cat([embed(batch) for batch in track(batches, "embed", total=len(batches))]))

    def _write_nearest(self, prediction_log: PredictionLog, texts: Tensor, images: Tensor) -> None:
        """Write the nearest captions of each picture and pictures of each caption beside the log."""
        if prediction_log.file is None:
            return
        file = prediction_log.file.with_name(f"{prediction_log.file.stem}_nearest.jsonl")
        most = RANKS[-1]
        rows = [
            {"picture": Path(image).name, "captions": best}
            for image, best in zip(self.images, texts[:, :most].tolist(), strict=True)
        ]
        rows += [
            {"caption": text, "pictures": best}
            for text, best in zip(self.texts, images[:, :most].tolist(), strict=True)
        ]
        PredictionLog(file, prediction_log.key).run([rows], list)

    def _match(
        self, model: PrunableModel, prediction_log: PredictionLog, texts: Tensor, images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Matching logits of the candidates of both directions.

        Args:
            model: matches pictures with texts.
            prediction_log: stores the logits of these candidates.
            texts: candidates of each picture, [pictures, k].
            images: candidates of each caption, [captions, k].
        """
        total = len(images)
        by_image = torch.arange(len(texts))[:, None] * total + texts
        by_text = images * total + torch.arange(total)[:, None]
        # Each once, and sorted: a picture's captions one behind the other.
        pairs = torch.cat([by_image.flatten(), by_text.flatten()]).unique()

        def look(part: list[int]) -> list[float]:
            logits: list[float] = self.interface.match(
                model,
                [self.images[pair // total] for pair in part],
                [self.texts[pair % total] for pair in part],
            ).tolist()
            return logits

        candidates = hashlib.blake2b(pairs.numpy().data, digest_size=16).hexdigest()
        of_pairs = PredictionLog(prediction_log.file, [prediction_log.key, candidates])
        found = of_pairs.run(parts(pairs.tolist(), self.task.batch_size), look)
        logits = finite(torch.tensor(found, dtype=torch.float32))
        return logits[torch.searchsorted(pairs, by_image)], logits[torch.searchsorted(pairs, by_text)]
