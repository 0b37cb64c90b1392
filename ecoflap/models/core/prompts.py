"""Prompts of models that write text: where a question goes, and what was generated behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ecoflap.data.example import has_one_place
from ecoflap.errors import UserError


def check_prompt(prompt: str) -> None:
    """Refuse a template that does not have exactly one place for the question.

    Raises:
        UserError: if ``{}`` does not occur once, or there are other braces.
    """
    if not has_one_place(prompt):
        raise UserError(
            f"model.prompt={prompt!r} must hold {{}} once, where the question goes, and no other braces"
        )


def generated_tokens(tokens: Tensor, prompt: Tensor) -> Tensor:
    """The generated tokens without the prompt, which some models and releases return too.

    Args:
        tokens: output of ``generate``, [batch, tokens].
        prompt: its input, [batch, tokens].

    Returns:
        [batch, new tokens].
    """
    asked = prompt.shape[1]
    has_prompt = tokens.shape[1] >= asked and torch.equal(tokens[:, :asked], prompt)
    return tokens[:, asked:] if has_prompt else tokens


def padding_token(tokenizer: Any) -> int:
    """The token id that answers are padded with: of padding, of the end of a text, or 0."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in ids if token is not None))


def decoded(tokenizer: Any, tokens: Tensor) -> list[str]:
    """Tokens [batch, tokens] as texts, without special tokens and without spaces around."""
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
