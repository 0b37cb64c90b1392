"""Names that differ only in their numbers are joined, and stand for exactly what was joined."""

from __future__ import annotations

import itertools
import re

import pytest

from ecoflap.run.alike import join_names, ranges


def expanded(name: str) -> list[str]:
    """All names that a joined name stands for."""
    parts = [
        [number for run in part.split(",") for number in numbers(run)]
        if re.fullmatch(r"[\d,-]+", part)
        else [part]
        for part in name.split(".")
    ]
    return [".".join(chosen) for chosen in itertools.product(*parts)]


def numbers(run: str) -> list[str]:
    first, _, last = run.partition("-")
    return [str(number) for number in range(int(first), int(last or first) + 1)]


EXPERTS = [f"layers.{block}.experts.{expert}.weight" for block in range(3) for expert in range(4)]


@pytest.mark.parametrize(
    "names",
    [
        EXPERTS,
        [name for name in EXPERTS if name != "layers.1.experts.2.weight"],  # REAP has removed one
        [f"h.{block}.attn.weight" for block in (0, 2, 3, 7)] + ["h.1.mlp.fc1.weight", "h.1.mlp.fc2.weight"],
        ["weight", "0", "10", "9"],
    ],
)
def test_joined_names_stand_for_what_was_joined(names: list[str]) -> None:
    found = join_names((name, len(name.split("."))) for name in names)
    assert sorted(name for one in found for name in expanded(one.name)) == sorted(names)
    assert all(one.count == len(expanded(one.name)) for one in found)


def test_other_shapes_and_parts_of_words_are_not_joined() -> None:
    found = join_names([("0.fc1", (2, 2)), ("1.fc1", (2, 2)), ("2.fc1", (2, 3)), ("0.fc2", (2, 2))])
    assert [(one.name, one.what, one.count) for one in found] == [
        ("0-1.fc1", (2, 2), 2),
        ("2.fc1", (2, 3), 1),
        ("0.fc2", (2, 2), 1),
    ]


def test_ranges() -> None:
    assert ranges([3, 0, 1, 10, 2]) == "0-3,10"
