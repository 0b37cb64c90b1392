"""Two sweeps on one page: methods keep the name of their sweep, and the second is compared with the first."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoflap.cli.report import main
from ecoflap.errors import UserError
from ecoflap.sweeps.report.differences import rows_of
from ecoflap.sweeps.report.metrics import make_tables
from ecoflap.sweeps.report.runs import read_sweeps, short_paths
from ecoflap.sweeps.report.sections import make_sections
from tests.sweeps.report.conftest import write_run

pytestmark = pytest.mark.long


@pytest.fixture
def sweeps(tmp_path: Path) -> list[Path]:
    """The second has more samples, and a method that the first lacks."""
    for name, samples, gains in (("zebra", 128, (0.0, 0.0, 0.0)), ("ant", 256, (1.9, 2.0, 2.1))):
        for seed, gain in enumerate(gains):
            uniform = {"calibration__samples": samples, "score": {"name": "none"}, "seed": seed}
            write_run(tmp_path / name, f"u{seed}", 60.0 + seed + gain, **uniform)
            if name == "ant":
                write_run(tmp_path / name, f"z{seed}", 70.0 + seed, calibration__samples=samples, seed=seed)
    return [tmp_path / "zebra", tmp_path / "ant"]


def test_each_method_is_compared_with_itself_in_the_first_sweep(sweeps: list[Path]) -> None:
    (table,) = make_tables(make_sections(read_sweeps(sweeps)))
    found = {
        row.method.label: [None if one is None else one.mean for one in (row.uniform, row.sweep)]
        for row in rows_of(table)
    }
    assert found == {
        "wanda, uniform, sweep=ant": [None, pytest.approx(2)],
        "wanda, uniform, sweep=zebra": [None, None],
        "wanda, zeroth order, sweep=ant": [pytest.approx(8), None],
    }


def test_the_page_names_both_and_stands_beside_the_first_ones_own(
    sweeps: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sweeps[0])]) == 0
    alone = (sweeps[0] / "report" / "index.html").read_text(encoding="utf-8")
    assert "sweep=" not in alone
    assert main(list(map(str, sweeps))) == 0
    html = (sweeps[0] / "report_ant" / "index.html").read_text(encoding="utf-8")
    assert "<title>zebra and ant</title>" in html
    assert "9 runs in" in html
    assert "to first sweep</th>" in html
    assert "+2 [+1.75, +2.25]" in html, "2 -+ 4.303 x 0.1 / sqrt(3)"
    assert "<code>ant/u0</code>" in html
    assert (sweeps[0] / "report" / "index.html").read_text(encoding="utf-8") == alone


def test_a_sweep_twice_is_refused(sweeps: list[Path]) -> None:
    with pytest.raises(UserError, match="compared with itself"):
        read_sweeps([sweeps[0], sweeps[0] / ".." / "zebra"])


def test_folders_of_one_name_are_told_apart() -> None:
    assert list(short_paths(["/a/monday/sweep", "/a/tuesday/sweep"]).values()) == ["monday", "tuesday"]
