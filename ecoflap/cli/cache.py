"""List, verify or shrink the stage cache.

    ecoflap cache ls
    ecoflap cache verify
    ecoflap cache gc --max-size 10GB

``gc`` removes damaged entries and the leftovers of dead processes, then the least recently used entries until
the rest fits. Runs may continue meanwhile: they compute a removed entry again. Exit code 1: ``verify`` found
damage. 2: wrong usage.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.console.tables import table
from ecoflap.storage.cache.upkeep import collect_garbage, entries, foreign, problem
from ecoflap.storage.file_names import CACHE

UNITS = ("", "K", "M", "G", "T")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = ArgumentParser(prog="ecoflap cache", description=__doc__)
    parser.add_argument("command", choices=("ls", "verify", "gc"))
    parser.add_argument(
        "--cache",
        type=given_path,
        default=Path(CACHE),
        help=f"folder of the cache (default: {CACHE})",
    )
    parser.add_argument("--max-size", type=size, help="with gc: how much to keep, such as 10GB")
    options = parser.parse_args(arguments)
    if not options.cache.is_dir():
        return complain(f"there is no cache at {options.cache}; --cache FOLDER names another")
    if (other := foreign(options.cache)) is not None:
        return complain(
            f"{options.cache} is not a cache: no cache has {other}; --cache FOLDER names the folder of all"
            f" stages, such as {CACHE}"
        )
    if options.command == "gc":
        if options.max_size is None:
            parser.error("gc needs --max-size, such as --max-size 10GB")
        removed, total = collect_garbage(options.cache, options.max_size)
        print(f"removed {removed} entries; {bytes_in_words(total)} remain")
        return 0
    return show(options.cache, options.command == "verify")


def show(root: Path, verify: bool) -> int:
    """Print every entry, with ``verify`` also its state; returns the exit code."""
    known, rows, damaged = list(entries(root)), [], 0
    for info in known:
        wrong = problem(info) if verify else None
        damaged += wrong is not None
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.used))
        model = info.key.get("model", "")
        model = model[:12] if isinstance(model, str) else ""
        row = [info.stage, info.path.name[:12], model, bytes_in_words(info.size), used, info.seconds]
        rows.append([*row, wrong or "sound"] if verify else row)
    columns = ["stage", "key", "model", "size", "last used", "seconds saved"]
    title = f"{root}: {len(known)} entries, {bytes_in_words(sum(info.size for info in known))}"
    table(title, [*columns, "state"] if verify else columns, rows)
    if damaged:
        print(f"{damaged} damaged: gc removes them, and runs compute them again when they need them")
    return int(damaged > 0)


def size(text: str) -> int:
    """Parse a size such as 500MB, 1.5 GiB or 4096; returns bytes.

    Raises:
        argparse.ArgumentTypeError: if it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 500MB, 10GB or a number of bytes")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** UNITS.index(match[2]))


def bytes_in_words(size: int) -> str:
    """A number of bytes in a readable unit."""
    power = next(power for power in (4, 3, 2, 1, 0) if size >= 1000**power or power == 0)
    return f"{size / 1000**power:.3g} {UNITS[power]}B"
