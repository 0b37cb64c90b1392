"""The errors for users, whose message is complete without a traceback, and helpers for messages."""

from __future__ import annotations

import operator
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import fields
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

FEW = 12
"""The most choices that a message lists completely."""
OPPOSITE = {"cpu", "gpu"}
"""Names that are spelt alike, of which one is never meant by the other."""
SEEDS = 2**32
"""One above the largest seed of NumPy's generators; torch's take more."""
KINDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a single text",
    "list": "a list",
}


class UserError(Exception):
    """A request that can't be met; the message says what was asked, what was found and what to change."""


class UnavailableError(UserError):
    """A request for something that is not here, such as weights that are still to be downloaded."""


class SweepFailed(UserError):
    """Jobs of a sweep have failed, and have logged their reasons.

    Attributes:
        code: the exit code: 1 if one of them hit a bug, otherwise 2.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class NumericalError(Exception):
    """A NaN or an infinity appeared; the message says where."""


def raised_here(error: BaseException) -> bool:
    """Whether this package raised an error itself, and not code of the user or a library that it called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0]


def require_seed(seed: Any) -> int:
    """The seed as an int, if every random generator takes it.

    Raises:
        UserError: if it is not a whole number, or outside [0, 2**32).
    """
    seed = _whole("seed", seed)
    if not 0 <= seed < SEEDS:
        raise UserError(
            f"seed={seed} is outside [0, 2**32), the seeds that every random generator takes; choose one such"
            " as seed=0"
        )
    return seed


def require_positive(group: str, part: object, *options: str) -> None:
    """Refuse counts below one, and make the others ints.

    Args:
        group: the config group, for the message.
        part: the object that holds the options.
        options: their names; None is allowed.

    Raises:
        UserError: if one of them is not a whole number, or below one.
    """
    for option in options:
        if (value := getattr(part, option)) is not None:
            object.__setattr__(part, option, require_count(f"{group}.{option}", value))  # also if frozen


def require_count(name: str, value: Any) -> int:
    """The value as an int, if it is a whole number of at least 1.

    Raises:
        UserError: if it is not a whole number, or below one.
    """
    count = _whole(name, value)
    if count < 1:
        raise UserError(f"{name}={count} must be at least 1")
    return count


def _whole(name: str, value: Any) -> int:
    """A whole number of any library as an int."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"{name}={value!r} is a {type(value).__name__}; give a whole number")


def require_choices(group: str, part: object) -> None:
    """Refuse values that are not among the choices of their option.

    Args:
        group: the config group, for the message; empty for the run itself.
        part: a dataclass, with ``choices`` in the metadata of fields.

    Raises:
        UserError: if an option has another value.
    """
    for entry in fields(part):  # type: ignore[arg-type]
        if (choices := entry.metadata.get("choices")) is not None:
            option = f"{group}.{entry.name}" if group else entry.name
            require_choice(option, getattr(part, entry.name), choices)


def require_choice(option: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        UserError: if it is not.
    """
    if value not in (known := tuple(choices)):
        raise UserError(f"{option}={written(value)} is not known; {did_you_mean(str(value), known)}")


def nearest(asked: str, valid: Iterable[str], count: int = 3) -> str:
    """The most similar valid names as text for a message; the first ones if none is similar."""
    names = list(valid)
    close = similar(asked, names, count)
    shown = close or names[:8]
    return ", ".join(shown) + (", ..." if len(shown) < len(names) and not close else "")


def did_you_mean(asked: str, valid: Iterable[str], lister: str = "") -> str:
    """Suggest names instead of an unknown one: the most similar as a question, then all if they are few.

    Args:
        asked: the unknown name.
        valid: the valid names.
        lister: how to list all valid names, if they are many, such as a command.
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
    """The names that may have been meant, the most likely first.

    Args:
        asked: the unknown name.
        names: the valid names.
        count: the most that are returned.
    """
    wanted = asked.lower()
    likeness = {
        name: SequenceMatcher(None, wanted, name.lower()).ratio()
        for name in names
        if {wanted, name.lower()} != OPPOSITE
    }
    if len(wanted) > 1:  # one of a name's words, in a short name before a long one
        likeness |= {
            name: max(value, 0.8 + value / 10) for name, value in likeness.items() if wanted in name.lower()
        }
    best = max(likeness.values(), default=0.0)
    ranked = sorted(likeness, key=lambda name: -likeness[name])
    return [name for name in ranked if likeness[name] >= max(0.6, best - 0.15)][:count]


def typed_command() -> str:
    """The command that started this run: ``ecoflap run``, ``python main.py`` or ``python -m ecoflap run``."""
    program = Path(sys.argv[0])
    if program.name == "main.py":
        return "python main.py"
    return "python -m ecoflap run" if program.parts[-2:] == ("ecoflap", "__main__.py") else "ecoflap run"


def text_option(key: str, value: str) -> str:
    """An option whose value is one text, quoted so that Hydra reads none of its characters as syntax.

    In quotes, Hydra takes a backslash for itself unless a quote or the end is behind it.
    """
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return f'{key}="{escaped}"'


def path_option(key: str, path: object) -> str:
    """An option whose value is a path, quoted where Hydra reads some of its characters as syntax."""
    plain = re.fullmatch(r"[\w./-]+", str(path), re.ASCII)
    return f"{key}={path}" if plain else text_option(key, str(path))


def wrong_type(key: str, value: object, kind: str, example: object = None) -> str:
    """A message about a value of another type than the option has.

    Args:
        key: the option, with its group.
        value: the given value.
        kind: the option's type: float, int, bool, str, list.
        example: a value that fits.
    """
    given = f"{key}={written(value)}"
    instead = f", such as {key}={written(example)}" if example not in (None, "") else ""
    if value is None:
        return f"{given}: null is not allowed here; this option expects {KINDS.get(kind, kind)}{instead}"
    if kind == "list":
        text = str(value)
        return f"{given} is a single value, and this option expects a list: '{key}=[{text}]'"
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
