"""How a processor's chat template puts a question about a picture, and how it ends the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ecoflap.errors import UserError
from ecoflap.models.core.chats import has_template, templated

QUESTION, ANSWER = "@QUESTION@", "@ANSWER@"


def chat_prompt(processor: Any, options: Mapping[str, Any]) -> str:
    """The chat template for one question about one picture, with ``{}`` for the question.

    Args:
        processor: the model's processor.
        options: of the template, such as ``enable_thinking``.

    Raises:
        UserError: if it has no template, or the template has no such option.
    """
    if not has_template(processor):
        raise UserError(
            "this model's processor has no chat template; say how a question is put to it with model.prompt,"
            " such as 'USER: <image>\\n{} ASSISTANT:'"
        )
    for name in options:
        if name not in str(processor.chat_template):
            raise UserError(
                f"model.chat.{name} is an option of a chat template, and that of this model has none of this"
                " name; leave it out"
            )
    text = templated(processor, [_asked()], options)
    return text.replace("{", "{{").replace("}", "}}").replace(QUESTION, "{}")


def end_of_answer(processor: Any, options: Mapping[str, Any]) -> int | None:
    """The special token that the chat template writes behind an answer; None if it writes none.

    Some models end their turns with another token than the end of text: Gemma 3 with ``<end_of_turn>``.
    """
    tokenizer = processor.tokenizer
    messages = [_asked(), {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}]
    _, answer, behind = templated(processor, messages, options, begins_answer=False).partition(ANSWER)
    tokens = tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"] if answer else []
    added = tokenizer.added_tokens_decoder.get(tokens[0]) if tokens else None
    return int(tokens[0]) if added is not None and added.special else None


def _asked() -> dict[str, Any]:
    """A question about a picture, as a message."""
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
