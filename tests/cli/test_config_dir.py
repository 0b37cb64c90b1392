"""What lies beside the folder of ``--config-dir`` can be imported, however the flag is written and wherever a
run is started; and groups that only a place of ``hydra.searchpath`` has can be chosen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecoflap.cli import run
from ecoflap.cli.arguments import prepared
from ecoflap.cli.choices import Choices
from ecoflap.errors import UserError
from ecoflap.storage.cache import code
from ecoflap.sweeps import status
from tests.cli import forked
from tests.cli.conftest import ROOT
from tests.refusals.conftest import fresh_process  # noqa: F401 - a fixture

PRUNER = """
from dataclasses import dataclass

from opposite_formula import opposite
from ecoflap.prune.magnitude import Magnitude


@dataclass(frozen=True)
class Opposite(Magnitude):
    name: str = "opposite"

    def metric(self, weight, statistic):
        return opposite(super().metric(weight, statistic))
"""


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A folder of a pruner that keeps the smallest weights, and of its config."""
    folder = tmp_path / "mine"
    (folder / "conf" / "pruner").mkdir(parents=True)
    (folder / "conf" / "pruner" / "opposite.yaml").write_text(
        "_target_: opposite_pruner.Opposite\nname: opposite\n"
    )
    (folder / "opposite_pruner.py").write_text(PRUNER)
    (folder / "opposite_formula.py").write_text("def opposite(metric):\n    return -metric\n")
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    for module in ("opposite_pruner", "opposite_formula"):
        sys.modules.pop(module, None)
    for function in (code._read, code._spec, code._is_own):
        function.cache_clear()


@pytest.fixture
def data(text_run: list[str], tmp_path: Path) -> list[str]:
    """A run without scores."""
    return [*(one for one in text_run if not one.startswith("score.")), "score=none", "pruner=opposite"]


@pytest.mark.parametrize(
    ("start_in", "flags"),
    [
        ("", ["--config-dir", "mine/conf"]),
        ("", ["--config-dir=mine/conf/"]),
        ("", ["-cd", "mine/conf"]),
        ("", ["--config-dir", "{mine}/conf"]),
        ("mine", ["-cd=conf"]),
        ("mine/conf", ["--config-dir", "."]),
        ("mine/conf/pruner", ["--config-dir", ".."]),
    ],
)
def test_however_the_flag_is_written(
    mine: Path, start_in: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mine.parent / start_in)
    prepared([*(flag.format(mine=mine) for flag in flags), "pruner=opposite"])
    prepared([*(flag.format(mine=mine) for flag in flags), "pruner=opposite"])
    assert sys.path.count(str(mine)) == 1
    assert sys.path[-1] == str(mine)  # it hides nothing


def test_without_the_flag_the_path_is_as_it_was() -> None:
    path = list(sys.path)
    prepared(["pruner=wanda"])
    assert sys.path == path


@pytest.mark.parametrize(
    "arguments", [["pruner=late"], ["-m", "pruner=wanda,late"], ["+study=late"], ["study=late"]]
)
def test_a_package_line_that_hydra_does_not_read(mine: Path, arguments: list[str]) -> None:
    """What is wrong is not that a plus is missing, or too many."""
    folder = mine / "conf" / arguments[-1].lstrip("+").partition("=")[0]
    folder.mkdir(exist_ok=True)
    file, given = folder / "late.yaml", [*arguments, "--config-dir", str(mine / "conf")]
    for head in ("# @package _global_\n# Mine\n", "\n# @package _global_\n"):
        file.write_text(f"{head}sparsity: 0.3\n")
        prepared(given)
    file.write_text("# Mine\n# @package _global_\nsparsity: 0.3\n")
    with pytest.raises(UserError, match=rf"{file} is in line 2, .*; make it the first line"):
        prepared(given)


def names(folder: Path) -> list[str]:
    """The pruners of a sweep's runs."""
    found = [json.loads((folder / str(number) / "result.json").read_text()) for number in (0, 1)]
    return [result["config"]["pruner"]["name"] for result in found]


def test_a_sweep_in_this_process(
    mine: Path,
    data: list[str],
    monkeypatch: pytest.MonkeyPatch,
    fresh_process: None,
) -> None:
    monkeypatch.chdir(mine.parent)
    arguments = ["-m", "-cd", "mine/conf", *data, "sparsity=0.4,0.6"]
    assert run.main([*arguments, f"hydra.sweep.dir={mine.parent / 'sweep'}"]) == 0
    assert names(mine.parent / "sweep") == ["opposite", "opposite"]


def started(arguments: list[str], folder: Path) -> str:
    """Run ``python`` with these arguments in a folder; returns what it says."""
    done = forked.python(arguments, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_jobs_and_a_sweep_that_is_started_again(mine: Path, data: list[str], tmp_path: Path) -> None:
    """Jobs of a sweep that was started with a relative folder, and its failed ones from another folder."""
    sweep = tmp_path / "sweep"
    axes = ["sparsity=0.4,0.6", "cluster=local", f"hydra.sweep.dir={sweep}"]
    started([str(ROOT / "main.py"), "-m", "--config-dir", "mine/conf", *data, *axes], tmp_path)
    assert names(sweep) == ["opposite", "opposite"]
    (tmp_path / "elsewhere").mkdir()
    (sweep / "1" / "result.json").unlink()
    with (mine / "opposite_formula.py").open("a") as file:
        file.write("# an edit\n")
    said = started(["-m", "ecoflap", "status", str(sweep), "--rerun-failed"], tmp_path / "elsewhere")
    assert "1 of 2 jobs have finished before" in said
    assert "job 0: that result was made by other code (pruner opposite_pruner.Opposite: " in said
    assert names(sweep) == ["opposite", "opposite"]


EDITS_ITSELF = """
from pathlib import Path

from ecoflap.prune.wanda import Wanda


class Edited(Wanda):
    def __call__(self, *given, **options):
        file = Path(__file__)
        file.write_text(file.read_text() + "# edited")
        return super().__call__(*given, **options)
"""


@pytest.mark.parametrize(("snapshot", "done"), [("true", [True, False]), ("false", [True, True])])
@pytest.mark.every_run("true-*")
def test_an_edit_of_a_part_while_jobs_wait(
    mine: Path, data: list[str], tmp_path: Path, snapshot: str, done: list[bool]
) -> None:
    """The first of two jobs edits the pruner that the second was submitted with."""
    (mine / "edited.py").write_text(EDITS_ITSELF)
    (mine / "conf" / "pruner" / "edited.yaml").write_text("_target_: edited.Edited\n")
    sweep = tmp_path / "sweep"
    options = ["pruner=edited", f"hydra.launcher.snapshot={snapshot}", "sparsity=0.4,0.6", "cluster=local"]
    arguments = ["-m", "--config-dir", "mine/conf", *data, *options, f"hydra.sweep.dir={sweep}"]
    command = [sys.executable, str(ROOT / "main.py"), *arguments, "hydra.launcher.parallel=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    said = ended.stdout + ended.stderr
    assert [(sweep / str(job) / "result.json").is_file() for job in range(2)] == done, said
    assert ended.returncode == (0 if all(done) else 2), said
    assert ("edited.py has changed since this job was submitted" in said) is not all(done)
    assert "Traceback" not in said
    lines = status.read(sweep)
    assert [line.state for line in lines] == ["done", "done" if all(done) else "failed"]
    assert all(done) or "has changed since this job was submitted" in str(lines[1].reason)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a pruner and a group of its own."""
    folder = tmp_path / "with_configs"
    for place in ("", "conf", "conf/pruner", "conf/study"):
        (folder / place).mkdir()
        (folder / place / "__init__.py").touch()
    (folder / "conf" / "pruner" / "least.yaml").write_text("_target_: ecoflap.prune.magnitude.Magnitude\n")
    (folder / "conf" / "study" / "sparse.yaml").write_text("# @package _global_\nsparsity: 0.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.mark.parametrize("place", ["pkg://with_configs.conf", "file://{package}/conf"])
def test_groups_of_a_search_path(package: Path, place: str) -> None:
    search = f"hydra.searchpath=[{place.format(package=package)}]"
    arguments = ["+study=sparse", search, "pruner=least"]
    assert prepared(arguments)[0] == arguments
    choices = Choices(overrides=arguments)
    assert "least" in choices.options("pruner")
    assert "wanda" in choices.options("pruner")
    with pytest.raises(UserError, match="stduy"):
        prepared(["+stduy=sparse", search])
    with pytest.raises(UserError, match="study"):
        prepared(["+study=sparse"])


def test_what_is_on_a_search_path_is_named_where_another_is_asked_for(
    package: Path, capfd: pytest.CaptureFixture[str], fresh_process: None
) -> None:
    assert run.main(["hydra.searchpath=[pkg://with_configs.conf]", "pruner=laest"]) == 2
    assert "did you mean least?" in capfd.readouterr().err
