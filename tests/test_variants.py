"""Which parameters of a test every run takes (``every_run``, tests/conftest.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_collection_modifyitems


def chosen(names: list[str], *patterns: str) -> list[str]:
    """The names of tests that stay without the mark."""
    variants: list[str] = []
    items: list[Any] = [
        SimpleNamespace(
            name=name,
            nodeid=f"tests/test_one.py::{name}",
            get_closest_marker=lambda marker: pytest.mark.every_run(*patterns).mark if patterns else None,
            add_marker=lambda marker, name=name: variants.append(name) if marker.name == "variant" else None,
        )
        for name in names
    ]
    pytest_collection_modifyitems(items)
    return [name for name in names if name not in variants]


def test_a_pattern_is_one_of_the_parameters_or_matches_all_of_them() -> None:
    names = [
        "test_one[llama-wanda]",
        "test_one[llama_2-wanda]",
        "test_one[t5-admm]",
        "test_one[clip-admm 2:4]",
    ]
    assert chosen(names, "llama") == [names[0]]
    assert chosen(names, "llama*", "t5-admm") == names[:3]
    assert chosen(names, "*-admm*") == names[2:]


def test_without_the_marker_all_run() -> None:
    assert chosen(["test_one[a]", "test_one"]) == ["test_one[a]", "test_one"]


def test_a_pattern_of_nothing_is_an_error() -> None:
    with pytest.raises(pytest.UsageError, match=r"no parameter of tests/test_one\.py::test_one"):
        chosen(["test_one[a]", "test_one[b]"], "c")


def test_a_case_selected_by_its_name_may_be_a_variant() -> None:
    assert chosen(["test_one[b]"], "a") == []
