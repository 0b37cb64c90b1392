"""The docs name modules, classes and functions that exist and all fields, and the README is short."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from ecoflap.storage.results import sparsity_section

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAME = re.compile(r"`(ecoflap(?!\.log`)(?:\.\w+)+)`")
LONGEST_README = 130  # lines


def names() -> list[str]:
    return sorted({name for page in PAGES for name in NAME.findall(page.read_text())})


@pytest.mark.parametrize("name", names())
def test_a_name_in_the_docs_exists(name: str) -> None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return


def test_the_walks_are_checked() -> None:
    walks = NAME.findall((ROOT / "docs" / "walks.md").read_text())
    assert len(set(walks)) > 30


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def test_every_sparsity_field_of_a_record_is_documented() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert not [name for name in sparsity_section({}, None, 1) if f"| `sparsity.{name}` |" not in page]
