"""The two errors a person sees, whose words are the whole message, and the words that they share."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import fields
from difflib import SequenceMatcher
from pathlib import Path

FEW = 12
"""Up to so many choices are all named."""
KINDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a single text",
    "list": "a list",
}


class UserError(Exception):
    """Something that was asked for can't be done; the message says what was asked, what was found and what to
    change.
    """


class SweepFailed(UserError):
    """Jobs of a sweep have failed, each of which has said why.

    Attributes:
        code: the exit code: 1 where one of them met a bug, otherwise 2.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class NumericalError(Exception):
    """A NaN or an infinity appeared; the message names where."""


def require_positive(group: str, part: object, *options: str) -> None:
    """Refuse counts below one.

    Args:
        group: the config group, for the message.
        part: the object that holds the options.
        options: their names; null is allowed where it means all.

    Raises:
        UserError: one of them is below one.
    """
    for option in options:
        value = getattr(part, option)
        if value is not None and value < 1:
            raise UserError(f"{group}.{option}={value} must be at least 1")


def require_choices(group: str, part: object) -> None:
    """Refuse a value that is none of the names that its option takes.

    Args:
        group: the config group, for the message.
        part: a dataclass; the ``choices`` in the metadata of a field are the names that it takes.

    Raises:
        UserError: if an option has another value.
    """
    for entry in fields(part):  # type: ignore[arg-type]
        choices, value = entry.metadata.get("choices"), getattr(part, entry.name)
        if choices is not None and value not in choices:
            raise UserError(f"{group}.{entry.name}={value} is not known; {did_you_mean(str(value), choices)}")


def nearest(asked: str, valid: Iterable[str], count: int = 3) -> str:
    """The valid names most like the one asked for, as words for a message; any, where none is."""
    names = list(valid)
    close = similar(asked, names, count)
    shown = close or names[:8]
    return ", ".join(shown) + (", ..." if len(shown) < len(names) and not close else "")


def did_you_mean(asked: str, valid: Iterable[str], lister: str = "") -> str:
    """What to choose instead of a name that there isn't: the nearest as a question, then all where they are
    few.

    Args:
        asked: the name.
        valid: the names that there are.
        lister: what lists them all, where they are many; such as a command.
    """
    names = list(dict.fromkeys(valid))
    if not names:
        return "there is nothing to choose from"
    close = similar(asked, names)
    question = (
        f"did you mean {' or '.join(filter(None, [', '.join(close[:-1]), close[-1]]))}? " if close else ""
    )
    if close == names:
        return question.strip()
    if len(names) <= FEW:
        choices = (
            f"the choices are {', '.join(names)}" if len(names) > 1 else f"the only choice is {names[0]}"
        )
    elif close:
        choices = f"there are {len(names)} choices" + (f"; {lister}" if lister else "")
    else:
        choices = f"the choices are {', '.join(names[:FEW])}, ... ({len(names)} in all)" + (
            f"; {lister}" if lister else ""
        )
    return question + choices


def similar(asked: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that somebody may have meant, the most likely first."""
    wanted = asked.lower()
    likeness = {name: SequenceMatcher(None, wanted, name.lower()).ratio() for name in names}
    if len(wanted) > 1:  # one of a name's words, in a short name before a long one
        likeness |= {
            name: max(value, 0.8 + value / 10) for name, value in likeness.items() if wanted in name.lower()
        }
    best = max(likeness.values(), default=0.0)
    ranked = sorted(likeness, key=lambda name: -likeness[name])
    return [name for name in ranked if likeness[name] >= max(0.6, best - 0.15)][:count]


def typed_command() -> str:
    """How a run was started at the keyboard: ``ecoflap run``, ``python main.py`` or ``python -m ecoflap
    run``.
    """
    program = Path(sys.argv[0])
    if program.name == "main.py":
        return "python main.py"
    return "python -m ecoflap run" if program.parts[-2:] == ("ecoflap", "__main__.py") else "ecoflap run"


def wrong_type(key: str, value: object, kind: str, example: object = None) -> str:
    """A message about a value of another type than the option has.

    Args:
        key: the option, with its group.
        value: what was given.
        kind: the option's type: float, int, bool, str, list.
        example: a value that fits.
    """
    given, instead = (
        f"{key}={written(value)}",
        f", such as {key}={written(example)}" if example not in (None, "") else "",
    )
    if value is None:
        return f"{given}: null is no value of this option; it wants {KINDS.get(kind, kind)}{instead}"
    if kind == "list":
        text = str(value)
        return f"{given} is a single value, and this option wants a list: '{key}=[{text}]'"
    if kind == "float" and isinstance(value, str) and (percent := re.fullmatch(r"\s*([\d.]+)\s*%\s*", value)):
        return f"{given} is not a number; write {key}={float(percent[1]) / 100:g}"
    return f"{given} is not {KINDS.get(kind, f'a {kind}')}{instead}"


def written(value: object) -> str:
    """A value as it is written on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(written(item) for item in value)}]"
    return str(value)
