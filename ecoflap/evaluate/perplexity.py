"""Perplexity of a language model: exp of the mean negative log-likelihood of a token, each row scored by itself."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecoflap.calibrate.text import TextSource, read_token_rows, require_language_model, tokenize, vocabulary_of, windows
from ecoflap.errors import NumericalError, require_positive
from ecoflap.evaluate.inputs import parts
from ecoflap.evaluate.journal import IN_MEMORY, Journal
from ecoflap.models.prunable import PrunableModel


@dataclass(frozen=True)
class TextPerplexity(TextSource):
    """Perplexity on non-overlapping windows of a text.

    Attributes:
        sequence_length: tokens per window.
        limit: number of windows, from the first; null for all.
        batch_size: windows per forward pass; changes nothing beyond rounding.
        name: for people and result files.
    """

    sequence_length: int = 2048
    limit: int | None = None
    batch_size: int = 4
    name: str = "wikitext2"

    def __post_init__(self) -> None:
        require_positive("task", self, "sequence_length", "limit", "batch_size")

    def load(self, model: PrunableModel) -> PerplexityEvaluation:
        """Read and tokenise the text.

        Raises:
            UserError: the text isn't there, or the model is no language model.
        """
        require_language_model(model, f"task={self.name}")
        rows = windows(tokenize(model.processor, self.read_text("task")), self.sequence_length, "task")
        return PerplexityEvaluation(rows[: self.limit], self.batch_size)


@dataclass(frozen=True)
class TokenPerplexity:
    """Perplexity on rows of token ids from a file.

    Attributes:
        path: a safetensors file.
        key: the name of an integer tensor [rows, tokens] in it.
        limit: number of rows, from the first; null for all.
        batch_size: rows per forward pass; changes nothing beyond rounding.
        name: for people and result files.
    """

    path: str
    key: str
    limit: int | None = None
    batch_size: int = 4
    name: str = "token_perplexity"

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size")

    def load(self, model: PrunableModel) -> PerplexityEvaluation:
        """Read the rows.

        Raises:
            UserError: no such file or tensor, or the model is no language model.
        """
        require_language_model(model, f"task={self.name}")
        rows = read_token_rows(self.path, self.key, "task", vocabulary_of(model))
        return PerplexityEvaluation(rows[: self.limit], self.batch_size)


@dataclass
class PerplexityEvaluation:
    """Rows of tokens [rows, tokens] in memory; call it with a model."""

    rows: Tensor
    batch_size: int

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on beside the model."""
        return {
            "metric": "perplexity",
            "rows": list(self.rows.shape),
            "tokens": hashlib.blake2b(self.rows.contiguous().numpy().data, digest_size=16).hexdigest(),
        }

    @torch.no_grad()
    def __call__(self, model: PrunableModel, journal: Journal = IN_MEMORY) -> dict[str, float]:
        """Perplexity, the loss behind it in nats per token, and the number of rows."""
        model.module.eval()
        batches = parts(list(self.rows), self.batch_size)
        losses = journal.run(batches, lambda rows: model.loss({"input_ids": torch.stack(rows)}).double().tolist())
        loss = math.fsum(losses) / len(losses)
        if math.isnan(loss):
            raise NumericalError(f"the loss of {model.name} on this task is NaN; use model.dtype=float32 or bfloat16, or prune less")
        return {"perplexity": math.exp(loss) if loss < 700 else math.inf, "loss": loss, "rows": len(self.rows)}
