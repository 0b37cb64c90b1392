"""The command ``ecoflap``, which imports only the module of the subcommand that it runs."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import NamedTuple

from ecoflap.console.arguments import complain
from ecoflap.console.startup import collect_less_garbage, discard_output, sleep_soon
from ecoflap.errors import did_you_mean


class Subcommand(NamedTuple):
    """A subcommand.

    Attributes:
        module: the module whose ``main`` takes its arguments and returns the exit code.
        summary: its line in ``ecoflap --help``.
    """

    module: str
    summary: str


SUBCOMMANDS = {
    "run": Subcommand("ecoflap.cli.run", "prune a model; a sweep with -m: group=option key=value ..."),
    "plan": Subcommand("ecoflap.cli.plan", "show what a run or a sweep would do, and how long it takes"),
    "status": Subcommand("ecoflap.sweeps.status", "show how far a sweep is; --rerun-failed resumes it"),
    "report": Subcommand("ecoflap.cli.report", "make the table, the plots and the page of a sweep"),
    "bench": Subcommand("ecoflap.cli.bench", "measure size and speed of pruned and dense models"),
    "verify": Subcommand("ecoflap.cli.verify", "check a run's record against its saved weights"),
    "convert": Subcommand("ecoflap.cli.convert", "convert a saved model to dense, bitmask or coded form"),
    "push": Subcommand("ecoflap.cli.push", "upload a saved model to the hub, with its card and recipe"),
    "cache": Subcommand("ecoflap.cli.cache", "list, check or shrink the stage cache"),
    "explain": Subcommand("ecoflap.cli.explain", "explain a config group or one of its options"),
}
PLAN = "plan=true"
"""The option that makes a run a plan of it, in any case, as Hydra reads booleans."""
HELP = ("-h", "--help", "help")


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    0: done. 1: something failed, or a bug. 2: it asks for something that can't be done. 130: interrupted.

    Args:
        arguments: the arguments of the command; None for those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    collect_less_garbage()
    sleep_soon()
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        discard_output()
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        return complain(f"ecoflap needs a subcommand: {', '.join(SUBCOMMANDS)}; ecoflap --help says more")
    name, *rest = arguments
    if name in HELP:
        print(_help())
        return 0
    if name == "--version":
        print(version("ecoflap"))
        return 0
    if name not in SUBCOMMANDS:
        asked = f"ecoflap {name}: there is no such subcommand"
        if "=" in name or name == "-m":
            return complain(f"{asked}; a run is started with ecoflap run {' '.join(arguments)}")
        return complain(f"{asked}; {did_you_mean(name, list(SUBCOMMANDS))}")
    others = [argument for argument in rest if argument.lower() != PLAN]
    if name == "run" and others != rest:
        name, rest = "plan", others
    code: int = importlib.import_module(SUBCOMMANDS[name].module).main(rest)
    return code


def _help() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  ecoflap {name:{width}}  {one.summary}" for name, one in SUBCOMMANDS.items()]
    first = "Prune vision-language models and LLMs in one pass.\n"
    last = "\necoflap SUBCOMMAND --help says more; ecoflap --version prints the version."
    return "\n".join([first, *lines, last])
