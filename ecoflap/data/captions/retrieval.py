"""Recall of captions and pictures as for BLIP: ranked by contrast (ITC), the best again by matching (ITM)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoflap.console.progress import track
from ecoflap.data.captions.layouts import Picture
from ecoflap.data.captions.options import RetrievalOptions
from ecoflap.data.captions.reading import CaptionSource, clean
from ecoflap.data.easy_vqa.picture_tasks import similarity
from ecoflap.data.example import Example
from ecoflap.data.sources import picture_sources
from ecoflap.errors import NumericalError, require_positive
from ecoflap.evaluate.inputs import fingerprint, parts, percent, spread
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.protocols import Embeds, Matches, require
from ecoflap.models.core.prunable import PrunableModel

RANKS = (1, 5, 10)
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
        owner = [index for index, one in enumerate(pictures) for _ in one.captions]
        texts = [clean(caption) for one in pictures for caption in one.captions]
        return RetrievalEvaluation(
            self, [one.image for one in pictures], texts, torch.tensor(owner), model.interface
        )


@dataclass(frozen=True)
class Found:
    """The nearest candidates of one direction.

    Attributes:
        ranks: how many wrong ones are at least as good as the best right one, per query.
        wrong: how many wrong ones there are, per query.
        best: the best candidates, [queries, k].
        scores: theirs.
        right: which of them are right.
    """

    ranks: Tensor
    wrong: Tensor
    best: Tensor
    scores: Tensor
    right: Tensor


def search(score: Callable[[Tensor], Tensor], asks: Tensor, has: Tensor, count: int, block: int) -> Found:
    """Find the nearest candidates of each query, ``block`` queries at a time.

    Args:
        score: similarities of some queries with all candidates, [queries, candidates].
        asks: the picture of each query, [queries].
        has: the picture of each candidate, [candidates].
        count: number of candidates to keep per query.
        block: queries at a time.
    """
    found = []
    for rows in torch.arange(len(asks)).split(block):
        scores, right = score(rows), asks[rows, None] == has
        values, best = scores.topk(min(count, len(has)), dim=1)
        found.append((rank(scores, right), (~right).sum(dim=1), best, values, right.gather(1, best)))
    return Found(*(torch.cat(column) for column in zip(*found, strict=True)))


def rank(scores: Tensor, right: Tensor) -> Tensor:
    """The number of wrong candidates before the first right one, [queries]; in ties, right ones come last."""
    first = scores.masked_fill(~right, float("-inf")).amax(dim=1, keepdim=True)
    return ((scores >= first) & ~right).sum(dim=1)


def rank_again(found: Found, logits: Tensor) -> Tensor:
    """Ranks after matching the best candidates; all others follow them, right ones last."""
    return torch.where(found.right.any(dim=1), rank(found.scores + logits, found.right), found.wrong)


@dataclass
class RetrievalEvaluation:
    """The task with its captions in memory; call it with a model.

    Attributes:
        owner: the index of the picture that each caption belongs to.
    """

    task: Retrieval
    images: list[str]
    texts: list[str]
    owner: Tensor
    interface: Any

    @property
    def sources(self) -> frozenset[str]:
        """The sources of the data, which must not be used for calibration."""
        return picture_sources(self.images)

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        captions: list[list[str]] = [[] for _ in self.images]
        for owner, text in zip(self.owner.tolist(), self.texts, strict=True):
            captions[owner].append(text)
        examples = [
            Example(target="\n".join(texts), image=image)
            for texts, image in zip(captions, self.images, strict=True)
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
        pictures, queries = torch.arange(len(images)), images[0].numel() // images.shape[-1]
        k, sizes = (
            max(self.task.k_test, 1),
            [max(1, BLOCK // (queries * len(others))) for others in (texts, images)],
        )
        by_image = search(lambda rows: similarity(images[rows], texts), pictures, self.owner, k, sizes[0])
        by_text = search(lambda rows: similarity(images, texts[rows]).t(), self.owner, pictures, k, sizes[1])
        self._write_down(prediction_log, by_image.best, by_text.best)
        found = {
            **_recalls(by_image.ranks, by_text.ranks, ""),
            "pictures": len(images),
            "captions": len(texts),
        }
        if not self.task.k_test or not isinstance(self.interface, Matches):
            return found
        logits = self._match(model, prediction_log, by_image.best, by_text.best)
        return {
            **_recalls(rank_again(by_image, logits[0]), rank_again(by_text, logits[1]), "_match"),
            **found,
        }

    def _features(self, items: Sequence[str], embed: Callable[[list[str]], Tensor]) -> Tensor:
        batches = parts(items, self.task.batch_size)
        return _finite(torch.cat([embed(batch) for batch in track(batches, "embed", total=len(batches))]))

    def _write_down(self, prediction_log: PredictionLog, texts: Tensor, images: Tensor) -> None:
        """Write the nearest captions of each picture and pictures of each caption beside the log."""
        if prediction_log.file is not None:
            names = [Path(image).name for image in self.images]
            rows = [
                {"picture": name, "captions": best}
                for name, best in zip(names, texts[:, : RANKS[-1]].tolist(), strict=True)
            ]
            rows += [
                {"caption": text, "pictures": best}
                for text, best in zip(self.texts, images[:, : RANKS[-1]].tolist(), strict=True)
            ]
            PredictionLog(
                prediction_log.file.with_name(f"{prediction_log.file.stem}_nearest.jsonl"), prediction_log.key
            ).run([rows], list)

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
        pairs = torch.cat(
            [by_image.flatten(), by_text.flatten()]
        ).unique()  # each once, sorted: a picture's captions one behind the other

        def look(part: list[int]) -> list[float]:
            logits: list[float] = self.interface.match(
                model,
                [self.images[pair // total] for pair in part],
                [self.texts[pair % total] for pair in part],
            ).tolist()
            return logits

        candidates = hashlib.blake2b(pairs.numpy().data, digest_size=16).hexdigest()
        logits = _finite(
            torch.tensor(
                PredictionLog(prediction_log.file, [prediction_log.key, candidates]).run(
                    parts(pairs.tolist(), self.task.batch_size), look
                )
            )
        )
        return logits[torch.searchsorted(pairs, by_image)], logits[torch.searchsorted(pairs, by_text)]


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise NumericalError(
            "the model makes features or logits that are not finite; use model.dtype=float32 or bfloat16, or"
            " prune less"
        )
    return values


def _recalls(texts: Tensor, images: Tensor, suffix: str) -> dict[str, float]:
    """Recalls of both directions by the ranks of their queries."""
    found: dict[str, float] = {}
    for kind, ranks in (("text", texts), ("image", images)):
        recalls = {str(most): percent((ranks < most).tolist()) for most in RANKS}
        found |= {
            f"{kind}_recall_{most}{suffix}": value
            for most, value in {**recalls, "mean": sum(recalls.values()) / len(RANKS)}.items()
        }
    return found | {
        f"recall_mean{suffix}": (found[f"text_recall_mean{suffix}"] + found[f"image_recall_mean{suffix}"]) / 2
    }
