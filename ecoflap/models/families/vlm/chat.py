"""How a processor's chat template puts a question about a picture, and how it ends the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ecoflap.errors import UserError

QUESTION, ANSWER = "@QUESTION@", "@ANSWER@"


def chat_prompt(processor: Any, options: Mapping[str, Any]) -> str:
    """The chat template for one question about one picture, with ``{}`` for the question.

    Args:
        processor: the model's processor.
        options: of the template, such as ``enable_thinking``.

    Raises:
        UserError: if it has no template, or the template has no such option.
    """
    template = getattr(processor, "chat_template", None)
    if not template:
        raise UserError(
            "this model's processor has no chat template; say how a question is put to it with model.prompt,"
            " such as 'USER: <image>\\n{} ASSISTANT:'"
        )
    for name in options:
        if name not in str(template):
            raise UserError(
                f"model.chat.{name} is an option of a chat template, and that of this model has none of this"
                " name; leave it out"
            )
    text = _rendered(processor, options, add_generation_prompt=True)
    return text.replace("{", "{{").replace("}", "}}").replace(QUESTION, "{}")


def end_of_answer(processor: Any, options: Mapping[str, Any]) -> int | None:
    """The special token that the chat template writes behind an answer; None if it writes none.

    Some models end their turns with another token than the end of text: Gemma 3 with ``<end_of_turn>``.
    """
    tokenizer = processor.tokenizer
    _, answer, behind = _rendered(processor, options, answer=True).partition(ANSWER)
    tokens = tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"] if answer else []
    added = tokenizer.added_tokens_decoder.get(tokens[0]) if tokens else None
    return int(tokens[0]) if added is not None and added.special else None


def _rendered(processor: Any, options: Mapping[str, Any], answer: bool = False, **more: Any) -> str:
    """The chat template for a question about a picture, and its answer if wanted."""
    asked = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": asked}]
    if answer:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": ANSWER}]})
    text: str = processor.apply_chat_template(messages, tokenize=False, **options, **more)
    return text
