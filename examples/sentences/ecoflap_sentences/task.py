"""Sentence retrieval: the second half of a passage by its first half, among all second halves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecoflap.console.progress import track
from ecoflap.data.text.source import TextSource
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.evaluate.inputs import spread
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from ecoflap_sentences.calibration import encode_halves, passages, require_halves
from ecoflap_sentences.model import embed

RANKS = (1, 5, 10)


@dataclass(frozen=True)
class SentenceRetrieval(TextSource):
    """Retrieve among the passages of a text.

    Attributes:
        sequence_length: most tokens of a half.
        limit: number of passages, evenly spaced over the text; null for all.
        batch_size: passages per forward pass; changes nothing beyond rounding.
        name: shown in logs and written to result files.
    """

    sequence_length: int = 64
    limit: int | None = None
    batch_size: int = 32
    name: str = "sentence_retrieval"

    def __post_init__(self) -> None:
        require_positive("task", self, "sequence_length", "limit", "batch_size")
        if self.limit is not None and self.limit < 2:
            raise UserError(
                f"task.limit={self.limit}: a passage is looked for among others, so 2 or more are needed;"
                " null is all"
            )

    def check_length(self, texts: Sequence[str], option: str) -> None:
        """See ``TextSource``; a text needs as many passages as the task uses."""
        spread(passages(self.separator.join(texts), option), self.limit, "passages")

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that makes no sentence embeddings, or reads no halves of that length.

        Raises:
            UserError: if the model makes no sentence embeddings, or reads no halves of that length.
        """
        require_halves(model, f"task={self.name}", self.sequence_length)

    def load(self, model: PrunableModel) -> SentenceRetrievalEvaluation:
        """Read the passages.

        Raises:
            UserError: if the model is not a sentence encoder, or the text is missing or has no passages.
        """
        self.check_model(model)
        found = spread(passages(self.read_text("task"), "task"), self.limit, "passages")
        return SentenceRetrievalEvaluation(
            **encode_halves(model, found, self.sequence_length),
            batch_size=self.batch_size,
            sources=self.sources,
        )


@dataclass
class SentenceRetrievalEvaluation:
    """Both halves of each passage in memory, [passages, 2, tokens]; call it with a model."""

    input_ids: Tensor
    attention_mask: Tensor
    batch_size: int
    sources: frozenset[str] = frozenset()

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        content = torch.cat([self.input_ids, self.attention_mask]).contiguous().numpy()
        return {
            "metric": "recall of the second half",
            "passages": len(self.input_ids),
            "tokens": hashlib.blake2b(content.data, digest_size=16).hexdigest(),
        }

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Recall in percent of the second half among the 1, 5 and 10 nearest, and the number of passages.

        Raises:
            NumericalError: if an embedding is not finite.
        """
        model.module.eval()
        parts = list(
            zip(
                self.input_ids.split(self.batch_size), self.attention_mask.split(self.batch_size), strict=True
            )
        )
        features = torch.cat([_features(model, *part) for part in track(parts, "evaluate", total=len(parts))])
        if not torch.isfinite(features).all():
            raise NumericalError(
                f"{model.name} makes embeddings that are not finite; use model.dtype=float32 or bfloat16, or"
                " prune less"
            )
        similarity = features[:, 0] @ features[:, 1].t()
        # How many others are at least as near: among equals the right one comes last, so that a model that
        # embeds all alike finds nothing.
        nearer = (similarity >= similarity.diagonal()[:, None]).sum(dim=1) - 1
        return {f"recall_at_{rank}": 100 * (nearer < rank).double().mean().item() for rank in RANKS} | {
            "passages": len(features)
        }


def _features(model: PrunableModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Embeddings of both halves on the CPU, [passages, 2, features]."""
    inputs = (tensor.flatten(0, 1).to(model.device) for tensor in (input_ids, attention_mask))
    return embed(model.module, *inputs).unflatten(0, (-1, 2)).cpu()
