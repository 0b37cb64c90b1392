"""``main.py`` in a copy of this process: what a new one would do, without its seconds of imports."""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it in a folder, and return what it printed and its exit code."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            _run(arguments, folder, output, errors)
        _, status = os.waitpid(child, 0)
        printed = [file.seek(0) or file.read() for file in (output, errors)]
    return subprocess.CompletedProcess(list(arguments), os.waitstatus_to_exitcode(status), *printed)


def _run(arguments: Sequence[str], folder: Path, output: TextIO, errors: TextIO) -> NoReturn:
    """What the copy does; it never returns to pytest."""
    code: int | str | None = 1
    try:
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        logging.getLogger().handlers.clear()
        GlobalHydra.instance().clear()
        os.chdir(folder)
        sys.argv = [str(ROOT / "main.py"), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
