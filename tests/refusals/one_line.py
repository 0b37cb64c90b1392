"""Run one bad command line in this process; check its exit code, its one line, and that nothing is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoflap.cli import command
from ecoflap.run.steps import prepare
from tests.refusals.case import Case

PLACES = (
    "hydra.run.dir={tmp}/made/run",
    "hydra.sweep.dir={tmp}/made/sweep",
    "cache={tmp}/made/cache",
    "tracking=none",
    "device=cpu",
)
RAW = ("Traceback", "HYDRA_FULL_ERROR", "Error executing job", "full_key:", "object_type=", "UserWarning")


class Loaded(BaseException):
    """The model would be loaded now; no handler of the program catches it."""


def arguments_of(case: Case, folder: Path) -> list[str]:
    """The case's arguments, with places in the temporary folder for what it doesn't place itself."""
    given = {argument.partition("=")[0].lstrip("+~") for argument in case.overrides}
    needed = PLACES if case.subcommand == "run" else ()
    places = [place for place in needed if place.partition("=")[0] not in given]
    return [argument.replace("{tmp}", str(folder)) for argument in (*case.overrides, *places)]


def without_slurm(
    name: str, *more: Any, find: Callable[..., str | None] = shutil.which, **options: Any
) -> str | None:
    """``shutil.which`` of a machine without Slurm."""
    return None if name == "srun" else find(name, *more, **options)


def started(case: Case, arguments: list[str]) -> int:
    """Run the program in this process; returns its exit code."""
    try:
        return command.main([case.subcommand, *arguments])
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1


def assert_one_line(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.prepare is not None:
        case.prepare(tmp_path)

    monkeypatch.setattr(shutil, "which", without_slurm)

    def load(*_: object) -> None:
        raise Loaded

    if not case.after_load:
        monkeypatch.setattr(prepare, "load", load)
    loaded, code = False, 0
    try:
        code = started(case, arguments_of(case, tmp_path))
    except Loaded:
        loaded = True
    said = capfd.readouterr()
    text = said.out + said.err
    assert not [raw for raw in RAW if raw in text], text
    assert loaded == (case.warns and not case.after_load), (
        f"the model was {'' if loaded else 'not '}loaded:\n{text}"
    )
    assert code == (0 if case.warns else case.code), text
    prefix = "warning: " if case.warns else "error: "
    lines = [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]
    assert len(lines) == 1, text
    for words in case.says:
        assert words.replace("{tmp}", str(tmp_path)) in lines[0], lines[0]
    if not case.warns:
        assert not list(tmp_path.glob("made/**/result.json"))
        assert not list(tmp_path.glob("made/run*")), "a refused run left its folder"
