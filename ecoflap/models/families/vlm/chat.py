"""How a processor's chat template puts a question about a picture, and how it ends the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ecoflap.errors import UserError
from ecoflap.models.core.chats import ANSWER, QUESTION, end_token, frame, has_template, templated


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
    text = templated(processor, [_question()], options)
    return text.replace("{", "{{").replace("}", "}}").replace(QUESTION, "{}")


def around_answer(processor: Any, options: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """(spaces, special token) that the chat template writes before and behind an answer.

    The spaces are None if it writes more than spaces, or can't be asked; the token is None if it writes none.
    """
    said = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    opening, closing = frame(processor, _question(), said, options)
    return None if (opening or "").strip() else opening, end_token(processor.tokenizer, closing)


def _question() -> dict[str, Any]:
    """A question about a picture, as a message."""
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
