"""The copy of the code that queued jobs run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ecoflap.errors import UserError
from ecoflap.sweeps.snapshot import PARTS, take_snapshot


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for part in PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        if part.endswith(".py"):
            (folder / part).write_text("run()\n")
        else:
            (folder / part).mkdir()
            (folder / part / "file.py").write_text("VALUE = 1\n")
    return folder


def test_a_copy_is_named_by_its_content(project: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "sweep", project)
    assert take_snapshot(tmp_path / "sweep", project) == first
    (project / "ecoflap" / "file.py").write_text("VALUE = 2\n")
    second = take_snapshot(tmp_path / "sweep", project)
    assert second != first
    assert (first / "ecoflap" / "file.py").read_text() == "VALUE = 1\n"
    assert (second / "ecoflap" / "file.py").read_text() == "VALUE = 2\n"


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_an_error(project: Path, tmp_path: Path, part: str) -> None:
    gone = project / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(UserError, match=f"has no {part}"):
        take_snapshot(tmp_path / "sweep", project)
    assert not (tmp_path / "sweep").exists()
