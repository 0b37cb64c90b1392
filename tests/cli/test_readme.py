"""Every command that the README, the docs or a config file show composes, and their links lead somewhere."""

from __future__ import annotations

import re

import pytest

from ecoflap.cli.arguments import with_suites
from tests.cli.conftest import ROOT, composed

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_ELSEWHERE = {"extend.md"}  # tests/cli/test_extend.py runs what that page shows
SHOWN = [
    *(page for page in DOCS if page.name not in RUN_ELSEWHERE),
    *sorted((ROOT / "conf").rglob("*.yaml")),
    *sorted((ROOT / "sweeps").rglob("*.yaml")),
]
COMMAND = re.compile(r"(?:python main\.py|ecoflap run)(?: -m)?((?: +\+?[\w/.]+=[^\s`]+)+)")


def commands() -> list[tuple[str, str]]:
    found = [
        (str(file.relative_to(ROOT)), match[1].strip())
        for file in SHOWN
        for match in COMMAND.finditer(file.read_text())
    ]
    return sorted(set(found))


@pytest.mark.parametrize(("file", "command"), commands())
@pytest.mark.every_run("README*", "docs*")
def test_a_shown_command_composes(file: str, command: str) -> None:
    first = [re.sub(r"(=[^,\[\]]+),.*", r"\1", word) for word in command.split()]  # of a sweep, one job
    assert 0 <= composed(with_suites(first)).sparsity < 1


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 20


def test_the_readme_starts_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("```"))
    assert lines[first + 1].startswith("make run")
    assert lines[first + 2].startswith("make test")


def links() -> list[tuple[str, str]]:
    return [
        (str(file.relative_to(ROOT)), link)
        for file in DOCS
        for link in re.findall(r"\]\(((?!http)[^)#]+)", file.read_text())
    ]


@pytest.mark.parametrize(("file", "link"), links())
def test_links_lead_somewhere(file: str, link: str) -> None:
    assert ((ROOT / file).parent / link).exists()
