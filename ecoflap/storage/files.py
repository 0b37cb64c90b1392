"""Write files and folders atomically, on any file system with an atomic rename."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

from ecoflap.storage.process_ids import machine, runs

JSON: TypeAlias = Any
"""What ``json.dumps`` takes; floats, NaN and infinities are read back bit for bit."""
_NUMBERS = re.compile(r"\[\n([-+\d.eE,\s]+)\]")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path, which replaces ``path`` once it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: JSON) -> None:
    """Write a value atomically, as indented JSON with each list of numbers on one line."""
    text = json.dumps(value, indent=2)
    # No string matches, as JSON writes a line break in one as two characters.
    text = _NUMBERS.sub(lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    with replacing(Path(path)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def as_json(value: Any) -> JSON:
    """A value as JSON has it: numbers and arrays of NumPy and PyTorch as Python's, other objects as text."""
    if isinstance(value, Mapping):
        return {str(name): as_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return value.tolist() if hasattr(value, "tolist") else str(value)


def read_json(path: Path) -> JSON | None:
    """The value of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def typed(path: Path) -> Path:
    """A path as it is typed in the working directory: relative where it is inside, else absolute."""
    try:
        return Path(path).absolute().relative_to(Path.cwd())
    except (ValueError, OSError):
        return Path(path).absolute()


def discard(folder: Path) -> None:
    """Delete a folder atomically: it is renamed first, so that no reader sees a part of it."""
    aside = beside(folder)
    if rename(folder, aside):
        shutil.rmtree(aside, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file, a folder as far as that is possible, or a link, but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def rename(source: Path, target: Path) -> bool:
    """Rename a folder; False if another job was faster: the target exists already, or the source is gone."""
    try:
        source.rename(target)
    except OSError:
        if target.exists() or not source.exists():
            return False
        raise
    flush(target.parent)
    return True


def beside(path: Path) -> Path:
    """A temporary name next to ``path`` that no other host, process or thread uses."""
    return path.with_name(f"{_made_here()}{os.getpid()}-{secrets.token_hex(4)}")


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes of this machine left in a folder."""
    if not machine():  # nor is it known which processes run
        return
    made_here = _made_here()
    for left in folder.glob(f"{made_here}*"):
        if runs(int(left.name.removeprefix(made_here).partition("-")[0])):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):  # of another user in a shared folder, or gone meanwhile
                left.unlink()


def _made_here() -> str:
    """How temporary names of this machine begin; other machines and containers may have its host name."""
    kernel = blake2b(machine().encode(), digest_size=4).hexdigest()
    return f"{TEMPORARY}{socket.gethostname()}-{kernel}-"


TEMPORARY = ".tmp-"


def flush(path: Path) -> None:
    """Flush a file or folder to the disk, so that a rename never survives a crash without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
