"""At which token choices differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecoflap.errors import UserError


def common_prefix(
    tokenizer: Any, rows: Sequence[Sequence[int]], choices: Sequence[str]
) -> tuple[list[int], list[int]]:
    """What rows of token ids have in common at the start, and the id that follows there in each.

    What a tokenizer puts before or behind every text, such as ``<s>``, a space or ``</s>``, tells none apart.

    Args:
        tokenizer: that of the rows, for the message.
        rows: ids of texts that end with one of the choices each.
        choices: the choices.

    Raises:
        UserError: if two rows have the same id there, or one ends.
    """
    common = 0
    while all(len(row) > common for row in rows) and len({row[common] for row in rows}) == 1:
        common += 1
    following = [row[common] for row in rows if len(row) > common]
    if len(set(following)) < len(rows):
        ids = ", ".join(f"{choice} as {list(tokenizer(choice)['input_ids'])}" for choice in choices)
        raise UserError(
            f"{type(tokenizer).__name__} does not tell the choices apart by one token: it writes {ids}; use a"
            " model with a tokenizer that knows them, or another task"
        )
    return list(rows[0][:common]), following
