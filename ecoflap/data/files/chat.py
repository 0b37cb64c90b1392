"""Rows with chats, as LLaVA (from, value), OpenAI (role, content) and their many users write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.data.conversation import Conversation, Picture, Turn
from ecoflap.data.files.pictures import Locate, locate
from ecoflap.data.files.turns import IMAGE, Place, Said, is_empty, read_turn
from ecoflap.errors import UserError

CHATS = ("conversations", "messages")
"""Names of the column with the turns."""
IMAGES = ("image", "images")
"""Names of the column with the picture or pictures."""
TOOLS = ("tools", "functions")
"""Columns that define the tools of a chat."""
TEMPLATE = "chat_template_kwargs"
"""The column with options of the chat template."""


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
        turns: all (the last answer is learned) or first (the first question's; what the assistant says before
            the question is left out).

    Raises:
        UserError: if there is no answer, or none of a question with ``first``, a turn is of an unknown kind,
            calls tools or has reasoning, the answer's weight is 0, the row defines tools or options of the
            template, or pictures are missing, or more or fewer than the places for them.
    """
    _refuse_unread(row, where)
    given = _turns(row, where)
    said = [read_turn(one, f"{where}, turn {number}") for number, one in enumerate(given, 1)]
    answers = _answers(said, where)
    question, learned = (0, answers[-1]) if turns == "all" else _first(said, answers, where)
    if given[learned].get("weight") == 0:
        raise UserError(
            f"{where}, turn {learned + 1}, of the role assistant, has the weight 0, and the loss would be"
            " that of this answer; take the weight, the turns from this one on, or the row out"
        )
    placed = _placed(said[: answers[-1] + 1], _images(row), where)[: learned + 1]
    shown = [*(turn for turn in placed[:question] if turn[0] != "assistant"), *placed[question:]]

    def located(part: str | Place) -> str | Picture:
        return part if isinstance(part, str) else Picture(locate(part.image, folder, where))

    found = tuple(Turn(role, tuple(map(located, parts))) for role, parts in [*_system(row, said), *shown])
    last = found[-1]
    if last.images or not last.text.strip():
        held, which = "a picture" if last.images else "no text", "first" if turns == "first" else "last"
        raise UserError(
            f"{where}: its {which} answer has {held}; give an answer of text, or take the row out"
        )
    return Conversation(found)


def _refuse_unread(row: Mapping[str, Any], where: str) -> None:
    """Refuse a row that defines tools, or options of the chat template.

    Raises:
        UserError: if it does.
    """
    if not is_empty(row.get(TEMPLATE)):
        raise UserError(
            f"{where} has {TEMPLATE}, which are not read; take the column out if the model's chat template"
            " writes these turns as you want without them, or give input_ids and labels"
        )
    if defined := next((name for name in TOOLS if not is_empty(row.get(name))), None):
        raise UserError(
            f"{where} defines tools ({defined}), which are not read; write them into its system turn as the"
            f" model reads them and take the column {defined} out, or take the row out"
        )


def _answers(said: Sequence[Said], where: str) -> list[int]:
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


def _system(row: Mapping[str, Any], said: list[Said]) -> list[Said]:
    """The system turn of a row that has it beside its turns."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or any(role == "system" for role, _ in said):
        return []
    return [("system", [system])]


def _first(said: Sequence[Said], answers: Sequence[int], where: str) -> tuple[int, int]:
    """The places of the first question and of its answer.

    Raises:
        UserError: if no question is answered.
    """
    question = next((place for place, (role, _) in enumerate(said) if role == "user"), len(said))
    if (answer := next((place for place in answers if place > question), None)) is None:
        raise UserError(
            f"{where}: none of its questions is answered, and turns=first learns the first question's answer;"
            " take the row out"
        )
    return question, answer


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


def _images(row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row."""
    found: Any = next((row[name] for name in IMAGES if row.get(name) is not None), [])
    return list(found) if isinstance(found, list | tuple) else [found]


def _placed(turns: list[Said], images: list[Any], where: str) -> list[Said]:
    """The turns with the row's pictures in their places.

    Raises:
        UserError: if there are more or fewer pictures than places.
    """
    places = [part for _, parts in turns for part in parts if isinstance(part, Place)]
    empty = [part for part in places if part.image is None]
    if images and not places:
        first = next((parts for role, parts in turns if role == "user"), turns[0][1])
        first[:0] = [Place(image) for image in images]
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
