"""How long a text a model can read."""

from __future__ import annotations

import re

from torch import nn

from ecoflap.errors import UserError
from ecoflap.models.prunable import PrunableModel

TABLE = re.compile(r"(^|\.)(\w*position\w*|wpe)$")


def most_tokens(module: nn.Module) -> int | None:
    """The longest text for which a language model has learned positions; null where it computes them, and any length runs."""
    lengths = [_places(table) for name, table in module.named_modules() if isinstance(table, nn.Embedding) and TABLE.search(name)]
    return min(lengths, default=None)


def _places(table: nn.Embedding) -> int:
    """Rows of a table of positions that are one's place: RoBERTa begins behind the padding's row, OPT and BART at an offset."""
    before = table.padding_idx + 1 if table.padding_idx is not None else getattr(table, "offset", 0)
    return table.num_embeddings - int(before)


def at_most(model: PrunableModel, tokens: int) -> int:
    """So many tokens, or as many as the model can read."""
    most = most_tokens(model.module)
    return tokens if most is None else min(tokens, most)


def require_length(model: PrunableModel, tokens: int, option: str) -> None:
    """Refuse texts that are longer than a model can read: on an accelerator, it would die of that without a word of the reason.

    Raises:
        UserError: so it is.
    """
    most = most_tokens(model.module)
    if most is not None and tokens > most:
        raise UserError(f"{option}: {model.name} has positions for {most} tokens; choose no more")
