"""The copy of the code that queued jobs run."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ecoflap.errors import UserError
from ecoflap.sweeps.snapshot import PARTS, hashes_of_parts, require_unchanged, take_snapshot


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


def test_the_modules_of_parts_lie_beside_a_link_to_their_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that is imported from is that of the link, not that of the folder which it points to."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere" / "conf").mkdir(parents=True)
    (tmp_path / "elsewhere" / "conf" / "own.yaml").write_text("name: own\n")
    (tmp_path / "mine" / "conf").symlink_to(tmp_path / "elsewhere" / "conf")
    module = tmp_path / "mine" / "linked_part.py"
    module.write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(module.parent))
    importlib.import_module("linked_part")
    known = hashes_of_parts([str(module.parent / "conf")], [str(module.parent)])
    sys.modules.pop("linked_part")
    assert {Path(name).name for name in known} == {"linked_part.py", "own.yaml"}
    require_unchanged(known)
    module.write_text("VALUE = 2\n")
    with pytest.raises(UserError, match=r"linked_part\.py has changed since this job was submitted"):
        require_unchanged(known)
    module.unlink()
    with pytest.raises(UserError, match="linked_part"):
        require_unchanged(known)


def test_modules_that_name_files_that_are_nowhere_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``torch.ops`` and ``torch.classes`` do, relative to the working directory."""
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    (tmp_path / "my_conf" / "model" / "mine.yaml").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    assert any(not Path(name).is_absolute() for name in (torch.ops.__file__, torch.classes.__file__))
    hashes = hashes_of_parts([tmp_path / "my_conf"], [tmp_path])
    assert list(hashes) == [str(tmp_path / "my_conf" / "model" / "mine.yaml")]
