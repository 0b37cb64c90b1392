"""Files written atomically: what JSON looks like, and that it is read back as it was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ecoflap.storage.files import read_json, write_json

VALUES = [
    {"rows": {"a.b": [3, 0, 17], "c": []}, "target": 0.6},
    [[1, 2], [-1.5, 2e-300, 1e22], [[7]]],
    {"text": "[\n  1,\n  2\n]", "[\n1\n]": ["[\n", "1", "\n]"]},
    [1, None, True, "2"],
    [[], {}, [0.1 + 0.2]],
]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_read_back_as_it_was(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_infinities_and_nan_are_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", [1.0, math.nan, -math.inf])
    one, nan, infinite = read_json(tmp_path / "value.json")
    assert (one, infinite) == (1.0, -math.inf)
    assert math.isnan(nan)


def test_a_list_of_numbers_takes_one_line(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"counts": [1, 2, 3], "names": ["a", "b"]})
    assert (tmp_path / "value.json").read_text().splitlines() == [
        "{",
        '  "counts": [1, 2, 3],',
        '  "names": [',
        '    "a",',
        '    "b"',
        "  ]",
        "}",
    ]
