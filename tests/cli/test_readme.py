"""Every command that the README or a config file shows composes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ecoflap import config as run_config
from tests.cli.conftest import ROOT, composed

SHOWN = [ROOT / "README.md", *sorted((ROOT / "conf").rglob("*.yaml")), *sorted((ROOT / "sweeps").rglob("*.yaml"))]
COMMAND = re.compile(r"python main\.py(?: -m)?((?: +\+?[\w/.]+=[^\s`]+)+)")


def commands() -> list[tuple[str, str]]:
    found = [(str(file.relative_to(ROOT)), match[1].strip()) for file in SHOWN for match in COMMAND.finditer(file.read_text())]
    return sorted(set(found))


@pytest.mark.parametrize(("file", "command"), commands())
def test_a_shown_command_composes(file: str, command: str) -> None:
    first = [re.sub(r"(=[^,\[\]]+),.*", r"\1", word) for word in command.split()]  # of a sweep, one job
    assert 0 <= composed(run_config.with_suites(first)).sparsity < 1


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 20


def test_the_readme_starts_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("```"))
    assert lines[first + 1].startswith("make run")
    assert lines[first + 2].startswith("make test")


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / "README.md").read_text()))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / Path(link)).exists()
