"""The BOS token: whether windows from the middle of a text begin with it, too.

Some models were never trained on a text without it: their perplexity is far off, and so are statistics of
their inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ecoflap.errors import UserError


def bos_token(tokenizer: Any, option: str, choice: str) -> int | None:
    """The id of the token that windows begin with; None for none.

    Args:
        tokenizer: the model's tokenizer.
        option: full name of the option, for the message.
        choice: ``auto`` for the token with which the tokenizer begins a text, if it does; ``true``;
            ``false``, see ``opening``.

    Raises:
        UserError: if the choice is ``true`` and the tokenizer has no such token.
    """
    token: int | None = getattr(tokenizer, "bos_token_id", None)
    if choice.lower() == "true" and token is None:
        raise UserError(
            f"{option}=true: the model's tokenizer has no token that begins a text; use {option}=auto"
        )
    begun = choice.lower() == "true" or (
        choice.lower() == "auto" and token is not None and _prepended(tokenizer)[:1] == [token]
    )
    return token if begun else None


def opening(tokenizer: Any, choice: str) -> list[int]:
    """The tokens that a text begins with before it is cut: with ``false`` the tokenizer's, as in papers.

    With the other choices there are none, as each window begins by itself.
    """
    return _prepended(tokenizer) if choice.lower() == "false" else []


def _prepended(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before a text, such as the ``<s>`` of a LLaMA's."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    places = range(len(ids) - len(plain) + 1)
    return ids[: next((place for place in places if ids[place : place + len(plain)] == plain), 0)]


def begin(rows: Tensor, token: int | None) -> Tensor:
    """Prepend a token to rows [rows, tokens], which gives [rows, tokens + 1]; None prepends nothing."""
    return rows if token is None else torch.cat([rows.new_full((len(rows), 1), token), rows], dim=1)
