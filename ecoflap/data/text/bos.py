"""The tokens around a text, and whether windows from the middle of a text begin with the first ones, too.

Some models were never trained on a text without them: their perplexity is far off, and so are statistics of
their inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ecoflap.errors import UserError


def first_tokens(tokenizer: Any, option: str, choice: str) -> list[int]:
    """The ids of the tokens that each window begins with.

    Args:
        tokenizer: the model's tokenizer.
        option: full name of the option, for the message.
        choice: ``auto`` for those that the tokenizer puts before a text, such as LLaMA's ``<s>`` or GLM-4's
            ``[gMASK]<sop>``; ``true`` for the same, or its BOS token where it puts none; ``false`` for none,
            see ``opening``.

    Raises:
        UserError: if the choice is ``true`` and the tokenizer has no such token.
    """
    if choice.lower() == "false":
        return []
    before, token = surrounding_tokens(tokenizer)[0], getattr(tokenizer, "bos_token_id", None)
    if choice.lower() == "true" and not before:
        if token is None:
            raise UserError(
                f"{option}=true: the model's tokenizer has no token that begins a text; use {option}=auto"
            )
        return [int(token)]
    return before


def own_tokens(length: int, first: Sequence[int], option: str) -> int:
    """How many tokens of a text are in a window behind its first ones.

    Args:
        length: tokens of a window.
        first: see ``first_tokens``.
        option: the config group, for the message.

    Raises:
        UserError: if there are none.
    """
    if length <= len(first):
        raise UserError(
            f"{option}.sequence_length={length} leaves no room behind the {len(first)} tokens that begin a"
            " text; choose more"
        )
    return length - len(first)


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


def begin(rows: Tensor, first: Sequence[int]) -> Tensor:
    """Prepend tokens to rows [rows, tokens], which gives [rows, first + tokens]."""
    return torch.cat([rows.new_tensor(first).expand(len(rows), -1), rows], dim=1) if first else rows
