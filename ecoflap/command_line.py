"""A command line before Hydra reads it: what is written differently there, and what is refused."""

from __future__ import annotations

import re
from dataclasses import fields

from ecoflap.config import RunConfig
from ecoflap.errors import UserError, nearest

PLACES = ("experiment", "sweeps")


def understood(arguments: list[str]) -> list[str]:
    """The command line as Hydra is given it.

    Raises:
        UserError: it names an option that is not there.
    """
    arguments = with_suites(arguments)
    if complaint := unknown_keys(arguments):
        raise UserError(complaint)
    return arguments


def with_suites(arguments: list[str]) -> list[str]:
    """Command-line arguments with ``task=[one,other]`` as a suite of these tasks; Hydra would merge their options into one task."""
    written = []
    for argument in arguments:
        several = re.fullmatch(r"task=\[([\w,\s]+)\]", argument)
        names = [name.strip() for name in several[1].split(",")] if several else []
        written += ["task=suite", *(f"+task@task.tasks.{name}={name}" for name in names)] if names else [argument]
    return written


def unknown_keys(arguments: list[str]) -> str | None:
    """A message about the first override whose top-level key does not exist, with the nearest that do; Hydra's own names no choices."""
    known = [*(entry.name for entry in fields(RunConfig)), "cluster"]
    for argument in arguments:
        match = re.match(r"([A-Za-z_]\w*)(?:\.[\w.]+)?=", argument)
        if match and match[1] in PLACES:
            return f"{argument}: {match[1]} is a place to look for more, which Hydra wants a plus before: +{argument}"
        if match and match[1] not in (*known, "hydra"):
            return f"{argument}: there is no option {match[1]!r}; did you mean {nearest(match[1], known)}? python main.py --help lists all"
    return None
