"""The tokens around a text, and the BOS token: whether windows from the middle of a text begin with it, too.

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
        choice.lower() == "auto" and token is not None and surrounding_tokens(tokenizer)[0][:1] == [token]
    )
    return token if begun else None


def opening(tokenizer: Any, choice: str) -> list[int]:
    """The tokens that a text begins with before it is cut: with ``false`` the tokenizer's, as in papers.

    With the other choices there are none, as each window begins by itself.
    """
    return surrounding_tokens(tokenizer)[0] if choice.lower() == "false" else []


def surrounding_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind a text, such as LLaMA's ``<s>``, T5's ``</s>``."""
    whole, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    places = range(len(whole) - len(plain) + 1 if plain else 0)
    starts = [place for place in places if whole[place : place + len(plain)] == plain]
    return (list(whole[: starts[0]]), list(whole[starts[-1] + len(plain) :])) if starts else ([], [])


def begin(rows: Tensor, token: int | None) -> Tensor:
    """Prepend a token to rows [rows, tokens], which gives [rows, tokens + 1]; None prepends nothing."""
    return rows if token is None else torch.cat([rows.new_full((len(rows), 1), token), rows], dim=1)
