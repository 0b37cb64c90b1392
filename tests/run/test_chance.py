"""A dense model that is about as right as a constant answer is remarked on."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecoflap.evaluate.inputs import commonest
from ecoflap.run import pipeline
from ecoflap.run.config import package_file
from ecoflap.run.steps.evaluation import near_chance
from tests.cli.conftest import composed_as_given


class Asked:
    def __init__(self, chance: float) -> None:
        self.level = chance

    def identity(self) -> dict[str, object]:
        return {}

    def __call__(self, model: object, prediction_log: object = None) -> dict[str, float]:
        return {}

    def chance(self) -> float:
        return self.level


class Served:
    def identity(self) -> dict[str, object]:
        return {}

    def __call__(self, model: object, prediction_log: object = None) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(
    ("accuracy", "remarked"), [(20.0, True), (33.0, True), (34.9, True), (35.1, False), (99.0, False)]
)
def test_beyond_two_standard_errors_nothing_is_said(accuracy: float, remarked: bool) -> None:
    metrics = {"accuracy": accuracy, "questions": 9.0, "accuracy_stderr": 1.0}
    said = near_chance("m", "t", Asked(33.0), metrics)
    assert (said is not None) == remarked
    if said is not None:
        assert f"{accuracy:.1f} on t" in said
        assert "33.0" in said


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert near_chance("m", "t", Served(), {"accuracy": 0.0}) is None
    assert near_chance("m", "t", Asked(50.0), {"questions": 3.0}) is None
    assert near_chance("m", "t", Asked(math.nan), {"accuracy": 0.0}) is None


def test_the_commonest_answer() -> None:
    assert commonest(["yes", "no", "yes", "red"]) == 50
    assert math.isnan(commonest([]))


def test_a_model_that_knows_nothing_is_remarked_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shutil.copytree(package_file("mini/blip2"), tmp_path / "random")
    file = folder / "model.safetensors"
    save_file({name: torch.rand_like(one) for name, one in load_file(file).items()}, file, {"format": "pt"})
    quick = ["tracking=none", "cache_mode=off", "steps=[evaluate]", "task.limit=60"]
    for path, remarked in ((package_file("mini/blip2"), False), (folder, True)):
        caplog.clear()
        pipeline.run(composed_as_given([*quick, f"model.path={path}"]), tmp_path / f"run_{remarked}")
        assert any("commonest answer" in one for one in caplog.messages) == remarked
