"""Configs that are edited while a sweep in one process runs: its jobs get those that were checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from ecoflap.storage.results import Result
from tests.cli import forked


class Edit(Callback):
    """Edits a config at the end of each job."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_job_end(self, **_: Any) -> None:
        self.file.write_text(self.file.read_text().replace("mask: row", "mask: matrix"))


def test_an_edited_config_changes_no_job_that_is_still_to_come(text_run: list[str], tmp_path: Path) -> None:
    file = tmp_path / "conf" / "pruner" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults:\n  - /options/pruner/Magnitude@_here_\n  - _self_\nmask: row\n")
    edit = f"+hydra.callbacks.edit={{_target_:{__name__}.Edit,file:{file}}}"
    given = [
        *text_run,
        "score=none",
        "pruner=mine",
        "sparsity=0.4,0.5",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    done = forked.main(["-m", "--config-dir", str(tmp_path / "conf"), *given, edit], tmp_path)
    assert done.returncode == 0, done.stderr
    results = [Result.read(tmp_path / "sweep" / str(number) / "result.json") for number in range(2)]
    assert [result.config["pruner"]["mask"] for result in results] == ["row", "row"]
    assert "mask: matrix" in file.read_text()
