"""Everything that docs/first_hour.md shows is run, in its order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import transformers

from tests.cli import forked
from tests.cli.conftest import ROOT

BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "first_hour.md").read_text()


def commands() -> list[list[str]]:
    """The page as arguments of ``python``: its blocks of Python, and its lines of the shell."""
    found: list[list[str]] = []
    for kind, text in BLOCK.findall(PAGE):
        if kind == "python":
            found.append(["-c", text])
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "ecoflap"
            found.append(["-m", "ecoflap", *arguments])
    return found


@pytest.mark.skipif(
    not hasattr(transformers, "Blip2Config"), reason=f"transformers {transformers.__version__} has no BLIP-2"
)
def test_every_command_of_the_page(tmp_path: Path) -> None:
    said = []
    for command in commands():
        done = forked.python(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout + done.stderr)
    assert len(said) == 10
    assert "0.5000 of the prunable weights are zero" in said[1]
    assert "all checks passed" in said[3]
    assert "accuracy: dense" in said[4]
    assert "4 done" in said[7]
    assert list((tmp_path / "sweep" / "report").iterdir())
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
