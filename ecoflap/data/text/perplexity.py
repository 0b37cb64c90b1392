"""Perplexity of a language model: exp of the mean negative log-likelihood per token, row by row."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from typing_extensions import override

from ecoflap.data.sources import token_sources
from ecoflap.data.text.bos import first_tokens, opening
from ecoflap.data.text.checks import require_language_model, require_readable, require_tokenizer
from ecoflap.data.text.options import BOS, TextPerplexityOptions, TokenPerplexityOptions
from ecoflap.data.text.reading import check_characters, read_token_rows, tokenize, windows
from ecoflap.data.text.source import TextSource
from ecoflap.errors import NumericalError, UserError, require_choice, require_positive
from ecoflap.evaluate.inputs import error_of_mean, parts
from ecoflap.evaluate.items import Items
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.causal import refuse_reading_ahead, require_causal
from ecoflap.models.core.losses import IGNORED, next_token_loss
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length

log = logging.getLogger(__name__)

COMPARED = 8
"""Tokens of the row that shows whether a model reads ahead."""
PASSAGE = 160
"""Tokens of a text that a report shows."""


@dataclass(frozen=True)
class TextPerplexity(TextPerplexityOptions, TextSource):
    """Perplexity on windows of a text.

    Without a stride, windows do not overlap, and all tokens of a window but the first are scored, as in
    papers on pruning language models. Their C4 is the first 1100 documents of the first validation shard,
    joined by spaces, of which they score the first 256 windows; their Penn Treebank is the sentences of the
    test split, joined by spaces. They prepend the BOS token, if any, to the whole text only: ``bos=false``.
    """

    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "loss", "rows")

    def __post_init__(self) -> None:
        require_positive("task", self, "sequence_length", "stride", "limit", "batch_size", "documents")
        require_choice("task.bos", self.bos.lower(), BOS)
        if self.sequence_length < 2:
            raise UserError(
                "task.sequence_length=1: a language model is measured on the next token, so a window needs"
                " two or more"
            )
        if self.stride is not None and self.stride >= self.sequence_length:
            raise UserError(
                f"task.stride={self.stride} must be less than task.sequence_length={self.sequence_length};"
                " null is for windows that don't overlap"
            )

    @override
    def check_length(self, texts: Sequence[str], option: str) -> None:
        """Windows span documents."""
        check_characters([self.separator.join(texts)], self.sequence_length, option)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that can't read such windows, or whose tokenizer makes too few tokens of the text.

        Raises:
            UserError: if the model is not a language model, reads no windows of this length, or the text has
                too few tokens.
        """
        require_language_model(model, f"task={self.name}")
        require_causal(model.module)
        require_length(model, self.sequence_length, f"task.sequence_length={self.sequence_length}")
        require_tokenizer(model, f"task={self.name}")
        if self.is_short(self.sequence_length, "task"):
            self.rows(model.processor)

    def rows(self, tokenizer: Any) -> Tensor:
        """The windows, [rows, tokens].

        Raises:
            UserError: if the text is missing, or shorter than one window.
        """
        tokens = tokenize(tokenizer, self.read_text("task"), opening(tokenizer, self.bos))
        return windows(tokens, self.sequence_length, "task", self.stride, self.first(tokenizer))

    def first(self, tokenizer: Any) -> list[int]:
        """The tokens that each window begins with.

        Raises:
            UserError: if the tokenizer has none, and some are asked for.
        """
        return first_tokens(tokenizer, "task.bos", self.bos)

    def load(self, model: PrunableModel) -> PerplexityEvaluation:
        """Read and tokenise the text.

        Raises:
            UserError: if the text is missing, or the model is not a language model or reads no windows of
                this length.
        """
        self.check_model(model)
        rows = limited(self.rows(model.processor), self.limit)
        begun = len(self.first(model.processor))
        return PerplexityEvaluation(rows, self.batch_size, self.stride, self.sources, begun)


@dataclass(frozen=True)
class TokenPerplexity(TokenPerplexityOptions):
    """Perplexity on rows of token ids from a file."""

    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "loss", "rows")

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size")

    def check_data(self, group: str) -> None:
        """Refuse a file without such rows.

        Raises:
            UserError: if the file is without such rows.
        """
        read_token_rows(self.path, self.key, group)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that can't read the rows.

        Raises:
            UserError: if the model can't read the rows.
        """
        require_language_model(model, f"task={self.name}")
        require_causal(model.module)
        require_readable(model, read_token_rows(self.path, self.key, "task"), self.key, "task")

    def load(self, model: PrunableModel) -> PerplexityEvaluation:
        """Read the rows.

        Raises:
            UserError: if there is no such file or tensor, or the model is no language model or can't read the
                rows.
        """
        self.check_model(model)
        rows = read_token_rows(self.path, self.key, "task")
        sources = token_sources(self.path, self.key, rows)
        return PerplexityEvaluation(limited(rows, self.limit), self.batch_size, sources=sources)


def limited(rows: Tensor, limit: int | None) -> Tensor:
    """The first rows, [at most limit, tokens]; None for all. If there are fewer, a warning says so."""
    if limit is not None and limit > len(rows):
        log.warning("task.limit=%d was asked for and there are only %d rows", limit, len(rows))
    return rows[:limit]


@dataclass
class PerplexityEvaluation:
    """Rows of tokens [rows, tokens] in memory; call it with a model.

    Attributes:
        rows: the token ids.
        batch_size: rows per forward pass.
        stride: how many of a row's last tokens are scored, in all rows but the first; None for all but a
            row's first token.
        sources: the name of the text, see ``ecoflap.data.sources``.
        begun: how many tokens before those of the text a row begins with; they are not scored.
    """

    rows: Tensor
    batch_size: int
    stride: int | None = None
    sources: frozenset[str] = frozenset()
    begun: int = 0

    @property
    def unscored(self) -> int:
        """How many of a row's first tokens are never scored: the very first one has nothing before it."""
        return max(1, self.begun)

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        return {
            "metric": "perplexity",
            "rows": list(self.rows.shape),
            "tokens": hashlib.blake2b(self.rows.contiguous().numpy().data, digest_size=16).hexdigest(),
            "stride": self.stride,
            "unscored": self.unscored,
        }

    @torch.no_grad()
    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Perplexity, loss in nats per token, and the number of rows.

        Raises:
            UserError: if the model reads the tokens that it should predict.
            NumericalError: if its loss is NaN.
        """
        model.module.eval()
        refuse_reading_ahead(model.module, self.rows[0, :COMPARED].to(model.device))
        batches = parts(range(len(self.rows)), self.batch_size)
        losses = prediction_log.run(batches, lambda places: self._losses(model, places).tolist())
        counted = [
            self.rows.shape[1] - self.unscored if self.stride is None or place == 0 else self.stride
            for place in range(len(losses))
        ]
        sums = [mean * tokens for mean, tokens in zip(losses, counted, strict=True)]
        loss = math.fsum(sums) / sum(counted)
        if math.isnan(loss):
            raise NumericalError(
                f"the loss of {model.name} on this task is NaN; use model.dtype=float32 or bfloat16, or prune"
                " less"
            )
        if prediction_log.file is not None:  # else nobody would see the passage
            shares = [one * len(losses) / sum(counted) for one in sums]
            items = Items("perplexity", shares, exponential=True, passage=self._passage(model))
            prediction_log.note(items)
        perplexity, error = math.exp(loss) if loss < 700 else math.inf, error_of_mean(losses)
        return {
            "perplexity": perplexity,
            "loss": loss,
            "rows": len(self.rows),
            "perplexity_stderr": perplexity * error if math.isfinite(perplexity) else math.inf,
            "loss_stderr": error,
        }

    def _passage(self, model: PrunableModel) -> list[tuple[str, float]]:
        """The first tokens that are predicted in the first row, each with its loss in nats."""
        rows, module = self.rows[:1, :PASSAGE], model.module
        decode = getattr(model.processor, "decode", str)  # a model without a tokenizer reads ids from a file
        scored = rows[0, self.unscored :]
        words = [decode([token]) for token in scored.tolist()]
        logits = module(input_ids=rows.to(model.device), use_cache=False).logits[0, self.unscored - 1 : -1]
        losses = cross_entropy(logits.float(), scored.to(logits.device), reduction="none")
        return list(zip(words, losses.tolist(), strict=True))

    def _losses(self, model: PrunableModel, places: list[int]) -> Tensor:
        """Mean loss over the scored tokens of each row, [rows]; never that of ``model.loss``."""
        rows = self.rows[places]
        labels = rows.clone()
        labels[:, : self.unscored] = IGNORED
        if self.stride is not None:
            labels[torch.tensor(places) > 0, : -self.stride] = IGNORED
        module: Any = model.module
        return next_token_loss(
            module(input_ids=rows.to(model.device), use_cache=False).logits, labels.to(model.device)
        )
