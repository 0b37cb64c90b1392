"""Put a conversation into the words of a model: its chat template, and the tokens of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ecoflap.data.conversation import Conversation
from ecoflap.errors import UserError

QUESTION, ANSWER = "@QUESTION@", "@ANSWER@"


class Frame(NamedTuple):
    """What a chat template puts around an answer.

    Attributes:
        opening: between its beginning of an answer and the answer; None if it can't be told.
        closing: all behind the answer.
    """

    opening: str | None
    closing: str


def has_template(processor: Any) -> bool:
    """Whether a processor or tokenizer says how a chat is put to its model."""
    return bool(getattr(processor, "chat_template", None))


def templated(
    processor: Any,
    messages: list[dict[str, Any]],
    options: Mapping[str, Any] | None = None,
    begins_answer: bool = True,
) -> str:
    """Messages in the chat template.

    Args:
        processor: a processor or tokenizer with a chat template.
        messages: see ``Conversation.asked``.
        options: of the template, such as ``enable_thinking``.
        begins_answer: whether its beginning of an answer follows.

    Raises:
        UserError: if the template refuses the conversation, as some do for system turns.
    """
    from jinja2 import TemplateError

    try:
        text: str = processor.apply_chat_template(
            messages, add_generation_prompt=begins_answer, tokenize=False, **(options or {})
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the chat template of this model refuses a conversation of {roles} ({error}); take such turns"
            " out"
        ) from None
    return text


def frame(
    processor: Any, asked: dict[str, Any], said: dict[str, Any], options: Mapping[str, Any] | None = None
) -> Frame:
    """What the chat template puts around the answer to one question.

    Args:
        processor: a processor or tokenizer with a chat template.
        asked: the question, as a message.
        said: a message whose text is ``ANSWER``.
        options: of the template.

    Raises:
        UserError: if the template refuses them.
    """
    prompt = templated(processor, [asked], options)
    whole = templated(processor, [asked, said], options, begins_answer=False)
    before, answer, closing = whole.rpartition(ANSWER)
    if not answer:
        return Frame(None, "")
    return Frame(before.removeprefix(prompt) if before.startswith(prompt) else None, closing)


def end_token(tokenizer: Any, closing: str) -> int | None:
    """The special token that begins what a chat template puts behind an answer; None if none does.

    Some models end their turns with another token than the end of text: Gemma 3 with ``<end_of_turn>``.
    """
    begun = closing.lstrip()
    tokens = tokenizer(begun, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder.get(tokens[0]) if tokens else None
    if added is None or not added.special or not begun.startswith(added.content):  # may be an unknown word
        return None
    return int(tokens[0])


def as_lines(conversation: Conversation) -> str:
    """All before the last answer, a line per turn, for a model without a chat template."""
    return "".join(f"{turn.text}\n" for turn in conversation.turns[:-1])


def as_texts(conversation: Conversation) -> list[dict[str, Any]]:
    """All before the last answer as messages of texts, for the chat template of a tokenizer."""
    return [{"role": turn.role, "content": turn.text} for turn in conversation.turns[:-1]]


def continuation(tokenizer: Any, before: str, text: str) -> list[int]:
    """The tokens of a text that follows another; alone, some LLaMA tokenizers would prepend a space token."""
    first, both, alone = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, before + text, text)
    )
    return list(both[len(first) :] if both[: len(first)] == first else alone)


def space_behind(text: str) -> str:
    """What separates an answer from a prompt where no template says it: a space unless the prompt has one."""
    return "" if text[-1:].isspace() else " "


def answer_tokens(
    tokenizer: Any, before: str, target: str, last: int | None, opening: str | None = None
) -> list[int]:
    """The tokens of an answer behind a prompt: the spaces before it, words, and the end token.

    Args:
        tokenizer: of the model.
        before: the prompt, or its last character.
        target: the answer.
        last: the token that ends an answer; None for none.
        opening: the spaces; None for one if the prompt ends in none.
    """
    opening = space_behind(before) if opening is None else opening
    return continuation(tokenizer, before[-1:], opening + target) + ([] if last is None else [last])
