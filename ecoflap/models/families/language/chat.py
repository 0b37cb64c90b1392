"""Conversations as a tokenizer's chat template writes them, cut in two where the last answer begins."""

from __future__ import annotations

from typing import Any, NamedTuple

from ecoflap.data.conversation import Conversation
from ecoflap.errors import UserError
from ecoflap.models.core.chats import (
    ANSWER,
    QUESTION,
    Frame,
    as_texts,
    continuation,
    end_token,
    frame,
    space_behind,
    templated,
)


class Parts(NamedTuple):
    """The texts of a conversation.

    Attributes:
        prompt: all before the last answer.
        answer: with the spaces around it that the template writes.
    """

    prompt: str
    answer: str


def encoded(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[int]]:
    """The tokens of all before the last answer, and those of the answer with the token that ends it.

    Raises:
        UserError: if the template refuses the turns.
    """
    around = _frame(tokenizer)
    parts = _parts(tokenizer, conversation, around)
    asked = tokenizer(parts.prompt, add_special_tokens=False)["input_ids"]
    answer, last = parts.answer, end_token(tokenizer, around.closing)
    if last is None:
        last = tokenizer.eos_token_id
    else:
        answer += around.closing[: -len(around.closing.lstrip())]
    return asked, continuation(tokenizer, parts.prompt, answer) + ([] if last is None else [last])


def _frame(tokenizer: Any) -> Frame:
    """What the template puts around an answer; nothing where it refuses a question with its answer."""
    asked, said = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
    try:
        return frame(tokenizer, asked, said)
    except UserError:
        return Frame(None, "")


def _parts(tokenizer: Any, conversation: Conversation, around: Frame) -> Parts:
    """Prompt and answer, whose content some templates trim or rewrite, as of thoughts.

    Raises:
        UserError: if the template refuses the turns before the answer.
    """
    prompt = templated(tokenizer, as_texts(conversation))
    opening, answer = around.opening, conversation.target
    written = _behind(tokenizer, conversation, prompt)
    if opening is None:
        opening = space_behind(prompt)
    elif written is not None and written.endswith(around.closing):
        written = written.removesuffix(around.closing)
        opening = opening if written.startswith(opening) else ""
        answer = written.removeprefix(opening)
    before = opening.rstrip(" ")
    return Parts(prompt + before, opening[len(before) :] + answer)


def _behind(tokenizer: Any, conversation: Conversation, prompt: str) -> str | None:
    """What the template writes behind a prompt for its answer; None where it can't be told."""
    said = {"role": "assistant", "content": conversation.target}
    try:
        whole = templated(tokenizer, [*as_texts(conversation), said], begins_answer=False)
    except UserError:
        return None
    return whole.removeprefix(prompt) if whole.startswith(prompt) else None
