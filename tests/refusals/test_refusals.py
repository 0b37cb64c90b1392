"""Every bad command line of this folder's tables."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from tests import refusals
from tests.refusals.case import Case
from tests.refusals.one_line import assert_one_line

TABLES = [
    info.name
    for info in pkgutil.iter_modules(refusals.__path__)
    if info.name not in ("case", "conftest", "one_line", "test_main", "test_refusals")
]
CASES = [
    pytest.param(case, id=f"{table}: {case}")
    for table in TABLES
    for case in getattr(importlib.import_module(f"tests.refusals.{table}"), "CASES", [])
]


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("case", CASES)
def test_one_line(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_line(case, tmp_path, capfd, monkeypatch)
