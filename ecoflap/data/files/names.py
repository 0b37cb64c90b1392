"""Names of columns: those that are known, and those that options give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ecoflap.data.files.chat import CHATS
from ecoflap.data.files.columns import COLUMNS
from ecoflap.data.files.rows import Row
from ecoflap.errors import UserError, nearest

KNOWN = (*CHATS, *(name for names in COLUMNS.values() for name in names))
"""All names of columns that are read."""
KINDS = {"chat": CHATS, **COLUMNS}
"""{what a column holds: its known names}; ``calibration.KIND_column`` gives another one."""


def named(row: Row, given: Mapping[str, str | None]) -> Mapping[str, Any]:
    """A row's values, with the columns that options name under known names alone.

    Columns of text or target are read instead of a chat, unless its column is named as well.

    Args:
        row: as it is in its file.
        given: {kind: the column that an option names, or None}.

    Raises:
        UserError: if it lacks such a column, or has none that is known, or only empty ones.
    """
    plain = given.get("chat") is None and (given.get("text") or given.get("target")) is not None
    unread = {*given.values(), *(CHATS if plain else ())}
    values = {name: value for name, value in row.values.items() if name not in unread}
    for kind, column in given.items():
        if column is None:
            continue
        if column not in row.values:
            raise UserError(
                f"calibration.{kind}_column={column}: {row.where} has {nearest(column, row.values, 8)}"
            )
        values = {name: value for name, value in values.items() if name not in KINDS[kind]}
        values[KINDS[kind][0]] = row.values[column]
    if given.get("text") == "instruction":
        _complete(values)
    if all(values.get(name) is None for name in KNOWN):
        renamed = {KINDS[kind][0]: column for kind, column in given.items() if column is not None}
        raise _nothing_in(row, [renamed.get(name, name) for name in KNOWN if name in values])
    return values


def _nothing_in(row: Row, empty: Sequence[str]) -> UserError:
    """The error for a row without a value to read.

    Args:
        row: as it is in its file.
        empty: the names of its columns that are known, and have no value.
    """
    options = "calibration.text_column=NAME, target_column, image_column, label_column or chat_column"
    if empty:
        return UserError(
            f"{row.where}: the value of {', '.join(empty)} is null; give a value, take the row out, or name"
            f" another column with {options}"
        )
    return UserError(
        f"{row.where} has {', '.join(map(str, row.values)) or 'no columns'}, and none of {', '.join(KNOWN)};"
        f" name its columns with {options}"
    )


def _complete(values: dict[str, Any]) -> None:
    """Put what an instruction of Alpaca's format is about behind it, after a blank line."""
    name, about = KINDS["text"][0], values.get("input")
    if isinstance(values[name], str) and isinstance(about, str) and about.strip():
        values[name] += f"\n\n{about}"
