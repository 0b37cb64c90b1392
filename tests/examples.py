"""What the tests of ``examples/`` share: the command on an example's page, run as it is typed, with nothing
of the example on the path but what ``--config-dir`` puts there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cli.conftest import ROOT


def readme_command(example: Path) -> list[str]:
    """The arguments of the command on the page of an example."""
    page = (example / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ecoflap run (.*)$", page, re.MULTILINE)
    return shlex.split(command)


def result_of(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run ``main.py`` from the checkout; returns what ``result.json`` says."""
    places = [f"hydra.run.dir={folder / 'run'}", f"cache={folder / 'cache'}", "tracking=none", "device=cpu"]
    done = subprocess.run(
        [sys.executable, "main.py", *arguments, *places],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "run" / "result.json").read_text())
    return found
