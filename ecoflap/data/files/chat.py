"""Rows with chats, as LLaVA (from, value), OpenAI (role, content) and their many users write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.data.conversation import Conversation, Picture, Turn
from ecoflap.data.files.pictures import Locate, locate
from ecoflap.errors import UserError, did_you_mean

CHATS = ("conversations", "messages")
"""Names of the column with the turns."""
IMAGES = ("image", "images")
"""Names of the column with the picture or pictures."""
IMAGE = "<image>"
"""Where a picture of the row stands in a text."""
CALLS = ("tool_calls", "function_call")
"""What a turn that calls tools has beside its content, or instead of it."""
TOOLS = ("tools", "functions")
"""Columns that define the tools of a chat."""
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


def has_chat(row: Mapping[str, Any]) -> bool:
    """Whether a row has turns."""
    return any(row.get(name) is not None for name in CHATS)


def is_batch_of_chats(row: Mapping[str, Any]) -> bool:
    """Whether a row holds the turns of several rows, as ``Dataset.batch`` makes it."""
    turns: Any = next((row[name] for name in CHATS if row.get(name) is not None), None)
    return isinstance(turns, list) and bool(turns) and all(isinstance(one, list) for one in turns)


def conversation(
    row: Mapping[str, Any], folder: Path | None, where: str, locate: Locate = locate, turns: str = "all"
) -> Conversation:
    """The conversation of a row, up to the answer that is learned.

    A picture of the row stands where a text says ``<image>`` or a part of a message has the type image; where
    none does, before the first question.

    Args:
        row: ``conversations`` or ``messages``; ``image`` or ``images``; and ``system``, its first turn if no
            other turn is the system's.
        folder: see ``locate``.
        where: the row, for messages.
        locate: finds its pictures.
        turns: all (the last answer is learned) or first (the first one is).

    Raises:
        UserError: if there is no answer, a turn is of an unknown kind, calls tools or has reasoning, the
            answer's weight is 0, the row defines tools, or pictures are missing, or more or fewer than the
            places for them.
    """
    _refuse_tools(row, where)
    given = _turns(row, where)
    said = [_turn(one, f"{where}, turn {number}") for number, one in enumerate(given, 1)]
    answers = _answers(said, where)
    learned = answers[0 if turns == "first" else -1]
    if given[learned].get("weight") == 0:
        raise UserError(
            f"{where}, turn {learned + 1}, of the role assistant, has the weight 0, and the loss would be"
            " that of this answer; take the weight, the turns from this one on, or the row out"
        )
    shown = _placed(said[: answers[-1] + 1], _images(row), where)[: learned + 1]

    def located(part: str | _Place) -> str | Picture:
        return part if isinstance(part, str) else Picture(locate(part.image, folder, where))

    found = tuple(Turn(role, tuple(map(located, parts))) for role, parts in [*_system(row, said), *shown])
    last = found[-1]
    if last.images or not last.text.strip():
        held, which = "a picture" if last.images else "no text", "first" if turns == "first" else "last"
        raise UserError(
            f"{where}: its {which} answer has {held}; give an answer of text, or take the row out"
        )
    return Conversation(found)


def _refuse_tools(row: Mapping[str, Any], where: str) -> None:
    """Refuse a row that defines tools.

    Raises:
        UserError: if it does.
    """
    if defined := next((name for name in TOOLS if not _empty(row.get(name))), None):
        raise UserError(
            f"{where} defines tools ({defined}), which are not read; write them into its system turn as the"
            f" model reads them and take the column {defined} out, or take the row out"
        )


def _answers(said: Sequence[_Said], where: str) -> list[int]:
    """The places of the assistant's turns.

    Raises:
        UserError: if there are none.
    """
    places = [place for place, (role, _) in enumerate(said) if role == "assistant"]
    if not places:
        roles = ", ".join(dict.fromkeys(role for role, _ in said)) or "none"
        raise UserError(
            f"{where} has no turn of the assistant (its roles: {roles}), and the loss is that of an answer;"
            ' give one, from "gpt" or with the role "assistant", or take the row out'
        )
    return places


def _system(row: Mapping[str, Any], said: list[_Said]) -> list[_Said]:
    """The system turn of a row that has it beside its turns."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or any(role == "system" for role, _ in said):
        return []
    return [("system", [system])]


class _Place:
    """A place for a picture; with the picture if the message holds it."""

    def __init__(self, image: Any = None) -> None:
        self.image = image


_Said = tuple[str, list["str | _Place"]]
"""(role, texts and pictures)."""


def _turns(row: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The turns of a row as dicts; Arrow may have turned a list of dicts into a dict of lists.

    Raises:
        UserError: if they are nothing of the kind.
    """
    name = next(name for name in CHATS if row.get(name) is not None)
    turns = row[name]
    if isinstance(turns, Mapping) and all(isinstance(values, list | tuple) for values in turns.values()):
        turns = [dict(zip(turns, values, strict=False)) for values in zip(*turns.values(), strict=False)]
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        raise UserError(
            f"{where}: {name} is a {type(turns).__name__}; give a list of turns such as"
            ' {"from": "human", "value": ...} or {"role": "user", "content": ...}'
        )
    return list(turns)


def _turn(turn: Mapping[str, Any], where: str) -> _Said:
    """The role and the parts of a turn.

    Args:
        turn: as the row has it.
        where: the row and the turn, for messages.

    Raises:
        UserError: if its keys, its role or its content are unknown, or it calls tools or has reasoning.
    """
    role = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    calls = next((name for name in CALLS if not _empty(turn.get(name))), None)
    if role is not None and (calls or (content is None and any(name in turn for name in CONTENTS))):
        held = "has no content, as turns that call tools" if content is None else f"calls a tool ({calls})"
        raise UserError(
            f"{where}, of the role {role}, {held}; only the content of turns is read: write"
            " the call as its content, or take the turn or the row out"
        )
    if role is None or content is None:
        raise UserError(
            f"{where} has {', '.join(map(str, turn)) or 'nothing'}; a turn has from and value,"
            " or role and content"
        )
    if reasoning := next((name for name in REASONING if not _empty(turn.get(name))), None):
        raise UserError(
            f"{where}, of the role {role}, has {reasoning}, which is not read; write the"
            f" reasoning into its content as the model writes it, or take {reasoning} or the row out"
        )
    if not isinstance(role, str):
        raise UserError(
            f"{where}: its role is a {type(role).__name__}; give one role per turn, and chats"
            " one by one, as a DataLoader with batch_size=None does"
        )
    if role not in ROLES:
        raise UserError(f"{where}: its role is {role}; {did_you_mean(role, ROLES)}")
    return ROLES[role], _parts(content, where)


def _parts(content: Any, where: str) -> list[str | _Place]:
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


def _empty(value: Any) -> bool:
    """Whether a value holds nothing, as what Arrow fills in: null, or lists and dicts of nothing else."""
    if isinstance(value, Mapping):
        return all(map(_empty, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_empty, value))
    return value is None or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def _split(text: str) -> Iterator[str | _Place]:
    """A text and its places for pictures; line ends around a place go, as templates write their own."""
    for number, piece in enumerate(text.split(IMAGE)):
        if number:
            yield _Place()
        if IMAGE in text:
            piece = piece.strip("\n")
        if piece:
            yield piece


def _part(part: Mapping[str, Any], where: str) -> str | _Place:
    """A part of a message in OpenAI's form.

    Raises:
        UserError: if it is neither text nor picture.
    """
    if isinstance(part.get("text"), str) and part.get("type", "text") in ("text", "input_text"):
        return str(part["text"])
    if part.get("type") in ("image", "image_url", "input_image"):
        held = (part.get(name) for name in ("image", "image_url", "url", "path"))
        image = next((one for one in held if one is not None), None)
        return _Place(image["url"] if isinstance(image, Mapping) and "url" in image else image)
    raise UserError(
        f"{where}: a part has the type {part.get('type')}; texts (text) and pictures (image, image_url) are"
        " read"
    )


def _images(row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row."""
    found: Any = next((row[name] for name in IMAGES if row.get(name) is not None), [])
    return list(found) if isinstance(found, list | tuple) else [found]


def _placed(turns: list[_Said], images: list[Any], where: str) -> list[_Said]:
    """The turns with the row's pictures in their places.

    Raises:
        UserError: if there are more or fewer pictures than places.
    """
    places = [part for _, parts in turns for part in parts if isinstance(part, _Place)]
    empty = [part for part in places if part.image is None]
    if images and not places:
        first = next((parts for role, parts in turns if role == "user"), turns[0][1])
        first[:0] = [_Place(image) for image in images]
        return turns
    if len(empty) != len(images):
        raise UserError(
            f"{where}: its text has {len(empty)} places for pictures ({IMAGE}, or a part of the type image),"
            f" and the row has {len(images)} pictures; mend the row, or say where they are with"
            " calibration.image_column=NAME"
        )
    for part, image in zip(empty, images, strict=True):
        part.image = image
    return turns
