"""Programs in a copy of this process: what a new one would do, without its seconds of imports."""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

from tests.hydra_mode import mode_of_overrides

ROOT = Path(__file__).parents[2]
MAIN = str(ROOT / "main.py")


@dataclass
class Started:
    """A copy that runs.

    Attributes:
        arguments: of the command line.
        pid: its process.
        output: what it prints.
        errors: what it prints to stderr.
    """

    arguments: Sequence[str]
    pid: int
    output: TextIO
    errors: TextIO

    def finished(self) -> subprocess.CompletedProcess[str]:
        """Wait for it; returns what it printed and its exit code."""
        _, status = os.waitpid(self.pid, 0)
        printed = [file.seek(0) or file.read() for file in (self.output, self.errors)]
        self.output.close()
        self.errors.close()
        return subprocess.CompletedProcess(list(self.arguments), os.waitstatus_to_exitcode(status), *printed)


def start(arguments: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> Started:
    """Start ``main.py`` in a folder, with some environment variables."""
    return _start([MAIN, *arguments], folder, variables or {})


def main(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``main.py`` in a folder, and return what it printed and its exit code."""
    return start(arguments, folder).finished()


def python(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what ``python`` with these arguments runs: ``FILE ...``, ``-m MODULE ...`` or ``-c SOURCE ...``."""
    return _start(arguments, folder, {}).finished()


def new_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``main.py`` in a process of its own, in the checkout.

    For tests of the process itself, and of what one loads or says once: a copy has what earlier tests in this
    process have loaded and said.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return subprocess.run(
        [sys.executable, MAIN, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
        timeout=300,
    )


def _start(arguments: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Started:
    """Start what ``python`` with these arguments starts."""
    output, errors = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
    child = os.fork()
    if child == 0:
        os.environ.update(variables)
        _run(arguments, folder, output, errors)
    return Started(arguments, child, output, errors)


def _run(arguments: Sequence[str], folder: Path, output: TextIO, errors: TextIO) -> NoReturn:
    """What the copy does; it never returns to pytest."""
    code: int | str | None = 1
    try:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        logging.getLogger().handlers.clear()
        GlobalHydra.instance().clear()
        Hydra.get_mode = mode_of_overrides  # type: ignore[method-assign]
        os.chdir(folder)
        _become(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _become(first: str, *rest: str) -> None:
    """Run a file, a module or a source as the main program of this process."""
    if first == "-m":
        sys.argv = list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        source, *sys.argv[1:] = rest
        exec(compile(source, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")
