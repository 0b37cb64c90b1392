"""A turn of a chat: its role, its texts, and the places for pictures in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ecoflap.errors import UserError, did_you_mean

IMAGE = "<image>"
"""Where a picture of the row stands in a text."""
CALLS = ("tool_calls", "function_call")
"""What a turn that calls tools has beside its content, or instead of it."""
REASONING = ("reasoning_content", "thinking")
"""The model's reasoning before the content of a turn."""
CONTENTS = ("value", "content", *CALLS)
"""What a turn has beside its role."""
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


class Place:
    """A place for a picture; with the picture if the message holds it."""

    def __init__(self, image: Any = None) -> None:
        self.image = image


Said = tuple[str, list["str | Place"]]
"""(role, texts and pictures)."""


def read_turn(turn: Mapping[str, Any], where: str) -> Said:
    """The role and the parts of a turn.

    Args:
        turn: as the row has it.
        where: the row and the turn, for messages.

    Raises:
        UserError: if its keys, its role or its content are unknown, or it calls tools or has reasoning.
    """
    role = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    calls = next((name for name in CALLS if not is_empty(turn.get(name))), None)
    if role is not None and (calls or (content is None and any(name in turn for name in CONTENTS))):
        held = "has no content, as turns that call tools" if content is None else f"calls a tool ({calls})"
        raise UserError(
            f"{where}, of the role {role}, {held}; only the content of turns is read: write the call as its"
            " content, or take the turn or the row out"
        )
    if role is None or content is None:
        raise UserError(
            f"{where} has {', '.join(map(str, turn)) or 'nothing'}; a turn has from and value, or role and"
            " content"
        )
    if reasoning := next((name for name in REASONING if not is_empty(turn.get(name))), None):
        raise UserError(
            f"{where}, of the role {role}, has {reasoning}, which is not read; write the reasoning into its"
            f" content as the model writes it, or take {reasoning} or the row out"
        )
    if not isinstance(role, str):
        raise UserError(
            f"{where}: its role is a {type(role).__name__}; give one role per turn, and chats one by one, as"
            " a DataLoader with batch_size=None does"
        )
    if role not in ROLES:
        raise UserError(f"{where}: its role is {role}; {did_you_mean(role, ROLES)}")
    return ROLES[role], _parts(content, where)


def _parts(content: Any, where: str) -> list[str | Place]:
    """The texts and pictures of a turn.

    Raises:
        UserError: if its content is nothing of the kind.
    """
    if isinstance(content, str):
        return list(_split(content))
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        return [_part(part, where) for part in content]
    raise UserError(
        f"{where}: its content is a {type(content).__name__}; give a text, or a list of parts such as"
        ' {"type": "text", "text": ...} and {"type": "image"}'
    )


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing, as what Arrow fills in: null, or lists and dicts of nothing else."""
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_empty, value))
    return value is None or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def _split(text: str) -> Iterator[str | Place]:
    """A text and its places for pictures; line ends around a place go, as templates write their own."""
    for number, piece in enumerate(text.split(IMAGE)):
        if number:
            yield Place()
        if IMAGE in text:
            piece = piece.strip("\r\n")
        if piece:
            yield piece


def _part(part: Mapping[str, Any], where: str) -> str | Place:
    """A part of a message in OpenAI's form.

    Raises:
        UserError: if it is neither text nor picture.
    """
    if isinstance(part.get("text"), str) and part.get("type", "text") in ("text", "input_text"):
        return str(part["text"])
    if part.get("type") in ("image", "image_url", "input_image"):
        held = (part.get(name) for name in ("image", "image_url", "url", "path"))
        image = next((one for one in held if one is not None), None)
        return Place(image["url"] if isinstance(image, Mapping) and "url" in image else image)
    raise UserError(
        f"{where}: a part has the type {part.get('type')}; texts (text) and pictures (image, image_url) are"
        " read"
    )
