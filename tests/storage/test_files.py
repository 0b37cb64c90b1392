"""Files written atomically: what JSON looks like, that it is read back, and what killed writers leave."""

from __future__ import annotations

import math
import os
import socket
import stat
from pathlib import Path

import pytest

from ecoflap.storage.files import beside, read_json, remove_abandoned, write_json
from tests.abandoned import abandoned

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


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a crash of the machine could leave an empty file under the name."""
    done, put = [], os.replace
    kind = lambda descriptor: "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(kind(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("name"), put(*paths)))
    write_json(tmp_path / "value.json", 1)
    assert done == ["file", "name", "folder"]


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


def test_only_what_killed_processes_of_this_machine_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder, mine = abandoned(tmp_path), abandoned(tmp_path), beside(tmp_path / "a")
    folder.mkdir()
    for path in (file, folder / "inside", mine, tmp_path / ".tmp-notes", tmp_path / "a"):
        path.write_text("")
    kept = {mine.name, ".tmp-notes", "a"}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        remove_abandoned(tmp_path)
    with monkeypatch.context() as in_a_container:
        in_a_container.setattr("ecoflap.storage.files.machine", lambda: "another kernel or namespace")
        remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, file.name, folder.name}
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
