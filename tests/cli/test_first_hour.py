"""Everything that docs/first_hour.md shows is run, in its order, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from tests.cli import forked
from tests.cli.conftest import ROOT

BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "first_hour.md").read_text()


def commands() -> list[list[str]]:
    """The commands of the page: its blocks of Python, and its lines of the shell."""
    found: list[list[str]] = []
    for kind, text in BLOCK.findall(PAGE):
        if kind == "python":
            found.append([sys.executable, "-c", text])
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "ecoflap"
            found.append([sys.executable, "-m", "ecoflap", *arguments])
    return found


@pytest.mark.skipif(
    not hasattr(transformers, "Blip2Config"), reason=f"transformers {transformers.__version__} has no BLIP-2"
)
def test_every_command_of_the_page(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    said = []
    for command in commands():
        if command[1:4] == ["-m", "ecoflap", "run"]:
            done = forked.main(command[4:], tmp_path)
        else:
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout + done.stderr)
    assert len(said) == 10
    assert "0.5000 of the prunable weights are zero" in said[1]
    assert "all checks passed" in said[3]
    assert "accuracy: dense" in said[4]
    assert "4 done" in said[7]
    assert list((tmp_path / "sweep" / "report").iterdir())
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
