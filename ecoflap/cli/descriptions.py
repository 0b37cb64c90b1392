"""Describe options by the docstring, the type hints and the metadata of their dataclass."""

from __future__ import annotations

import inspect
import re
import types
from dataclasses import dataclass, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

ENTRY = re.compile(r" {4}(?P<names>\w+(?:, \w+)*)(?: \([^)]*\))?: (?P<text>.*)")
TYPES = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    list: "list",
    dict: "mapping",
}


@dataclass(frozen=True)
class Description:
    """The description of an option.

    Attributes:
        kind: the type of its values in words.
        choices: the values that it takes; empty for any value of the type.
        meaning: its entry in the docstring; empty if there is none.
    """

    kind: str
    choices: tuple[str, ...]
    meaning: str


def described(kind: type) -> dict[str, Description]:
    """{option: its description} of a dataclass, in the order of its fields."""
    hints, meanings = get_type_hints(kind), meanings_of(kind)
    return {
        entry.name: Description(
            type_in_words(hints[entry.name]),
            tuple(entry.metadata.get("choices", ())),
            meanings.get(entry.name, ""),
        )
        for entry in fields(kind)
        if entry.init
    }


def meanings_of(kind: type) -> dict[str, str]:
    """The entries of ``Attributes:`` in the docstrings of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        found |= _attributes(inspect.cleandoc(one.__dict__.get("__doc__") or ""))
    return found


def _attributes(docstring: str) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, section = docstring.partition("Attributes:\n")
    for line in section.splitlines():
        if match := ENTRY.fullmatch(line):
            names = match["names"].split(", ")
            found |= dict.fromkeys(names, match["text"])
        elif line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return found


def summary_of(kind: type) -> str:
    """The first line of a class's docstring."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]


def type_in_words(hint: Any) -> str:
    """A type hint in words, such as ``whole number or null``."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = get_args(hint)
        numbers = [part for part in parts if part is not int or float not in parts]
        return " or ".join(type_in_words(part) for part in numbers)
    if hint is type(None):
        return "null"
    return TYPES.get(get_origin(hint) or hint, "any value")
