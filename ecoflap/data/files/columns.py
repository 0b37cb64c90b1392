"""Rows with plain columns: a picture, a question with its answer, a caption, a class, or a text."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecoflap.data.example import Example
from ecoflap.data.files.chat import IMAGES
from ecoflap.data.files.pictures import Locate, locate
from ecoflap.data.files.turns import IMAGE
from ecoflap.errors import UserError

COLUMNS = {
    "text": ("text", "question"),
    "target": ("target", "answer", "caption"),
    "image": IMAGES,
    "label": ("label",),
}
"""{attribute of a raw example: names of its column in a data set}."""


def example(
    row: Mapping[str, Any],
    captioned: bool,
    folder: Path | None = None,
    where: str = "an example",
    locate: Locate = locate,
) -> Example:
    """Build a raw example.

    Args:
        row: its values by the names in ``COLUMNS``.
        captioned: whether the only text of an image is its caption, unless its column says that it is a
            question, or one for what is to be written is there and empty.
        folder: see ``locate``.
        where: the row, for messages.
        locate: finds its picture.

    Raises:
        UserError: if a value has a wrong type, there is another text beside a question, or the picture is
            missing.
    """
    question, beside = row.get("question"), row.get("text")
    if question is not None and beside is not None and question != beside:
        raise UserError(
            f"{where} has a question and another text, of which one would be read; leave one out, or name"
            " one with calibration.text_column"
        )
    found: dict[str, Any] = {
        attribute: next((row[name] for name in names if row.get(name) is not None), None)
        for attribute, names in COLUMNS.items()
    }
    for attribute in ("text", "target"):
        value = found[attribute]
        if not isinstance(value, str | None):
            such = f", such as {value[0]!r}" if is_texts(value) else ""
            raise UserError(f"{attribute} of {where} is a {type(value).__name__}; give a str{such}")
    text, target = found["text"], found["target"]
    asked = row.get("question") is not None or any(name in row for name in COLUMNS["target"])
    if captioned and target is None and not asked:
        text, target = None, text
    image = _only(found["image"], where)
    label = None if found["label"] is None else _class(found["label"], where)
    return Example(
        (text or "") if image is None else _without_place(text or "", where),
        target or "",
        None if image is None else locate(image, folder, where),
        label=label,
        bare=text is None,
    )


def is_question(row: Mapping[str, Any]) -> bool:
    """Whether the text of a row is a question by the name of its column."""
    return row.get("text") is None and row.get("question") is not None


def is_texts(value: Any) -> bool:
    """Whether this is a list of texts."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(text, str) for text in value)


def _only(image: Any, where: str) -> Any:
    """The picture in a list of one.

    Raises:
        UserError: if there are several, whose places only a chat tells.
    """
    if not isinstance(image, list | tuple):
        return image
    if len(image) > 1:
        raise UserError(
            f"{where} has {len(image)} pictures, and a question of its own doesn't say where they stand; give"
            " a chat with <image> in its text"
        )
    return image[0] if image else None


def _without_place(text: str, where: str) -> str:
    """A question without the place of its picture, which the model's prompt has.

    Raises:
        UserError: if it has several.
    """
    pieces = text.split(IMAGE)
    if len(pieces) > 2:
        raise UserError(
            f"{where} has one picture, and its text has {len(pieces) - 1} places for pictures ({IMAGE}); give"
            " one at most, or a chat with a picture for each"
        )
    return text if len(pieces) == 1 else "\n".join(filter(None, (piece.strip("\r\n") for piece in pieces)))


def _class(label: Any, where: str) -> int:
    """The number of a class.

    Raises:
        UserError: if it is none.
    """
    try:
        return operator.index(label)
    except TypeError:
        raise UserError(
            f"label of {where} is {label!r}; give the number of its class, such as the model's"
            " config.label2id has"
        ) from None
