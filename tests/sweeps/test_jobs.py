"""Which jobs of a sweep have finished before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from ecoflap.storage.file_names import RESULT
from ecoflap.sweeps.jobs import Job, finished_values

JOBS = [Job(0, ["seed=0"]), Job(1, ["seed=1"])]


class Composed(Exception):
    """A job's config was asked for."""


def compose(*_: object) -> None:
    raise Composed


def values(folder: Path) -> dict[int, float | None]:
    context: Any = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=compose))
    return finished_values(context, OmegaConf.create(), JOBS, folder)


def test_where_no_result_stands_no_job_is_composed(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "status.json").touch()
    assert values(tmp_path) == {0: None, 1: None}


@pytest.mark.parametrize("run", ["1", "scores/0"])
def test_where_a_result_stands_jobs_are_composed(tmp_path: Path, run: str) -> None:
    (tmp_path / run).mkdir(parents=True)
    (tmp_path / run / RESULT).touch()
    with pytest.raises(Composed):
        values(tmp_path)
