"""Bars, log lines and tables, with and without a terminal."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecoflap.console.logs import ConsoleHandler, install_logging
from ecoflap.console.progress import track
from ecoflap.console.tables import table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_no_bar_without_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track(range(3), "score")) == [0, 1, 2]
    assert list(track(iter("ab"), "score", total=2)) == ["a", "b"]
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import logging, sys
from ecoflap.console.logs import install_logging
from ecoflap.console.progress import track
install_logging()
for item in track(range(3), "score [blocks]", total=3):
    logging.info("line of item %d [not markup]", item)
    print("printed", item)
"""


def run_in_terminal(script: str) -> str:
    """What a terminal of 100 columns receives from a script."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    received = b""
    try:
        while chunk := os.read(ours, 4096):
            received += chunk
    except OSError:
        pass  # Linux reports the end of a terminal as an error.
    os.close(ours)
    assert process.wait(timeout=30) == 0, received.decode()
    return received.decode()


def test_bar_and_log_lines_in_a_terminal() -> None:
    received = run_in_terminal(SCRIPT)
    visible = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", received)
    assert "score [blocks]" in visible
    assert "3/3" in visible
    lines = {line.split("\r")[-1].strip() for line in visible.replace("\r\n", "\n").split("\n")}
    for item in range(3):
        assert f"line of item {item} [not markup]" in lines
        assert f"printed {item}" in lines


def test_log_lines_are_messages_and_warnings_carry_their_level(
    capsys: pytest.CaptureFixture[str], root_logger: logging.Logger
) -> None:
    root_logger.handlers[:] = [logging.StreamHandler(io.StringIO())]
    install_logging()
    install_logging()
    logging.getLogger("ecoflap.x").info("score: %d blocks", 3)
    logging.getLogger("ecoflap.x").warning("long " * 60 + "end")
    logging.getLogger("ecoflap.x").debug("hidden")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "score: 3 blocks\nwarning: " + "long " * 60 + "end\n"
    assert [type(handler) for handler in root_logger.handlers] == [ConsoleHandler]


def test_file_handlers_stay_and_keep_their_level(
    tmp_path: Path, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    file = logging.FileHandler(tmp_path / "log")
    root_logger.handlers[:] = [logging.StreamHandler(sys.stdout), file]
    root_logger.setLevel(logging.DEBUG)
    install_logging()
    logging.debug("for the file")
    file.close()
    assert (tmp_path / "log").read_text() == "for the file\n"
    assert capsys.readouterr() == ("", "")


def test_exceptions_are_printed_with_their_traceback(
    capsys: pytest.CaptureFixture[str], root_logger: logging.Logger
) -> None:
    install_logging()
    try:
        raise ValueError("bad [value]")
    except ValueError:
        logging.exception("it failed")
    err = capsys.readouterr().err
    assert err.startswith("error: it failed\nTraceback")
    assert "ValueError: bad [value]" in err


def test_table_is_aligned_and_whole_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name = "model.layers.0." + "very_long_name." * 8 + "weight"
    table("allocation [test]", ["layer", "sparsity", "kept"], [[name, 0.5, 12], ["b", 0.25, None]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "allocation [test]"
    first, second = (next(line for line in lines if start in line) for start in (name, " b "))
    assert first.split() == [name, "0.5000", "12"]
    assert second.split() == ["b", "0.2500", "-"]
    assert first.index("0.5000") == second.index("0.2500")
    assert first.rindex("2") == second.rindex("-")


def test_no_line_of_a_table_is_padded_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table("sizes", ["weights", "note"], [["57,344", "long enough"], ["8", ""], [None, "x"]])
    lines = capsys.readouterr().out.split("\n")
    assert all(line == line.rstrip() for line in lines)
    ends = [line.index(cell) + len(cell) for line in lines for cell in ("57,344", " 8") if cell in line]
    assert len(set(ends)) == 1  # numbers are aligned on the right, with or without separators


def test_long_lines_break_between_words_on_a_terminal() -> None:
    path = "outputs/" + "x" * 110
    script = (
        "import logging; from ecoflap.console.arguments import complain;"
        "from ecoflap.console.logs import install_logging; install_logging();"
        f"logging.warning('{'word ' * 30}{path}'); complain('{'other ' * 30}')"
    )
    lines = [line.rstrip() for line in run_in_terminal(script).replace("\r\n", "\n").split("\n")]
    assert all(len(line) <= 100 for line in lines if path not in line)
    assert f"  {path}" in lines
    said = " ".join(" ".join(lines).split())
    assert said == f"warning: {'word ' * 30}{path} error: {('other ' * 30).strip()}"


def test_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    table("empty", ["a", "b"], [])
    assert "empty" in capsys.readouterr().out
