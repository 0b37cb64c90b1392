"""Which tokens of a sequence are visual, and which are the answer's: a loss declares it for statistics."""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.models.core.hooks import setting
from ecoflap.models.core.losses import IGNORED

# What configs of transformers call the token that pictures or frames take the place of.
PLACEHOLDERS = (
    "image_token_id",
    "image_token_index",
    "image_patch_id",
    "video_token_id",
    "video_token_index",
)


@dataclass(frozen=True)
class TokenKinds:
    """The kinds of the tokens in one tower's sequence.

    Attributes:
        visual: whether a token comes from a picture, [batch, tokens], boolean; the others are text.
        answer: whether a token is part of the answer that the loss counts, [batch, tokens], boolean.
    """

    visual: Tensor
    answer: Tensor


_declared: ContextVar[dict[str, TokenKinds] | None] = ContextVar("token_kinds", default=None)


def declaring(**towers: TokenKinds | None) -> AbstractContextManager[object]:
    """Declare, around a forward pass, the kinds of the tokens in the towers that read text and pictures.

    Args:
        towers: {tower: the kinds of its tokens}; None where they are not known.
    """
    return setting(_declared, {name: kinds for name, kinds in towers.items() if kinds is not None})


def kinds_in(tower: str, hidden: Tensor) -> TokenKinds | None:
    """What the innermost ``declaring`` says of a tower.

    Args:
        tower: its name.
        hidden: the hidden states that enter one of its blocks, [batch, tokens, features].

    Returns:
        None if it says nothing of this tower, or speaks of another number of samples or tokens.
    """
    kinds = (_declared.get() or {}).get(tower)
    return kinds if kinds is not None and kinds.visual.shape == hidden.shape[:2] else None


def misfit(tower: str, hidden: Tensor) -> str | None:
    """How the kinds of tokens that the innermost ``declaring`` says of a tower miss its hidden states.

    Args:
        tower: its name.
        hidden: as in ``kinds_in``.

    Returns:
        An empty text if they fit, None if it says nothing of this tower.
    """
    kinds = (_declared.get() or {}).get(tower)
    if kinds is None:
        return None
    declared, read = list(kinds.visual.shape), list(hidden.shape[:2])
    if declared == read:
        return ""
    return f"the loss declares the kinds of {declared} tokens, and its blocks read {read}"


def placeholder_kinds(
    module: nn.Module, input_ids: Tensor | None, labels: Tensor | None
) -> TokenKinds | None:
    """The kinds of tokens in a model that puts features of pictures in the place of special tokens.

    Args:
        module: a model of transformers.
        input_ids: [batch, tokens]; None if the model reads no text.
        labels: -100 where a token is not a target, [batch, tokens]; None if another sequence has the answer.

    Returns:
        None if there is no text, the config names no such token, or the model reads pictures by
        cross-attention.
    """
    config: Any = getattr(module, "config", None)
    ids = {getattr(config, name, None) for name in PLACEHOLDERS} - {None}
    text = getattr(config, "text_config", None)
    if input_ids is None or not ids or getattr(text, "cross_attention_layers", None):
        return None
    visual = torch.isin(input_ids, torch.tensor(sorted(ids), device=input_ids.device))
    return TokenKinds(visual, torch.zeros_like(visual) if labels is None else labels != IGNORED)


def prepended_kinds(count: int, input_ids: Tensor, labels: Tensor | None) -> TokenKinds:
    """The kinds of tokens in a model that puts so many features of pictures in front of the text.

    Args:
        count: the number of visual tokens of a sample.
        input_ids: [batch, tokens], without the visual tokens.
        labels: as in ``placeholder_kinds``.
    """
    text = torch.zeros_like(input_ids, dtype=torch.bool)
    answer = text if labels is None else labels != IGNORED
    pad = nn.functional.pad
    return TokenKinds(pad(text, (count, 0), value=True), pad(answer, (count, 0), value=False))
