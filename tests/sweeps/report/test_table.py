"""The table of a report, as Markdown and as CSV."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from ecoflap.cli.report import main
from ecoflap.sweeps.report.metrics import make_tables
from ecoflap.sweeps.report.page import write_page
from ecoflap.sweeps.report.runs import read_runs
from ecoflap.sweeps.report.sections import make_sections
from ecoflap.sweeps.report.table import markdown, write_csv
from tests.sweeps.report.conftest import write_run

pytestmark = pytest.mark.long


def lines(folder: Path) -> list[str]:
    return list(markdown(make_tables(make_sections(read_runs(folder)))))


def test_a_line_break_in_a_setting_ends_no_row(tmp_path: Path) -> None:
    for name, prompt in (("a", "Question: {}\nAnswer:"), ("b", "Question: {} Answer:")):
        write_run(tmp_path, name, 70.0, task={"name": "vqa", "prompt": prompt})
    assert [line.split(" | ")[3] for line in lines(tmp_path)[2:]] == [
        r"task.prompt=Question: {}\nAnswer:",
        "task.prompt=Question: {} Answer:",
    ]


def test_mean_deviation_and_count_over_seeds(tmp_path: Path) -> None:
    for seed, value in enumerate([70.0, 72.0, 74.0]):
        write_run(tmp_path, f"w{seed}", value, seed=seed)
    write_run(tmp_path, "deep/w", 60.0, sparsity=0.7, blocks={"vision": [0.6, 0.8], "text": [0.7]})
    write_run(tmp_path, "s", 75.0, pruner__name="sparsegpt")
    assert lines(tmp_path) == [
        "| model | pruner | coarse stage | metric | dense | 0.5 | 0.7 |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        "| tiny | sparsegpt | zeroth_order | vqa/accuracy | 80.00 | 75.00 (n=1) |  |",
        "| tiny | wanda | zeroth_order | vqa/accuracy | 80.00 | 72.00 ± 2.00 (n=3) | 60.00 (n=1) |",
    ]
    write_csv(tmp_path / "table.csv", make_tables(make_sections(read_runs(tmp_path))))
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [
        (row["pruner"], row["sparsity"], row["n"], row["mean"], row["deviation"], row["dense"])
        for row in rows
    ] == [
        ("sparsegpt", "0.5", "1", "75.0", "", "80.0"),
        ("wanda", "0.5", "3", "72.0", "2.0", "80.0"),
        ("wanda", "0.7", "1", "60.0", "", "80.0"),
    ]


def test_a_realised_sparsity_that_is_not_the_target_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path, "edited", 70.0, sparsity=0.6, blocks={"vision": [0.6, 0.8], "text": [0.7]})
    assert lines(tmp_path)[-1].endswith("| 70.00 (n=1) at 0.7000 |")
    tables = make_tables(make_sections(read_runs(tmp_path)))
    write_csv(tmp_path / "table.csv", tables)
    with (tmp_path / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["sparsity"], float(row["realised"])) == ("0.6", pytest.approx(0.7))
    page = write_page(tmp_path / "report", "title", [tables[0].section], tables, [], "here").read_text()
    assert "70.00 at 0.7000" in page
    assert "the realised sparsity, where it is not the target" in page


def test_runs_on_other_tasks_get_their_own_row(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0)
    write_run(tmp_path, "b", {"text": {"perplexity": math.inf}}, dense=None)
    out = "\n".join(lines(tmp_path))
    assert "| vqa/accuracy | 80.00 | 70.00 (n=1) |" in out
    assert "| text/perplexity |  | inf (n=1) |" in out


def test_a_part_without_a_name_is_called_by_its_class(tmp_path: Path) -> None:
    write_run(tmp_path, "own", 70.0, score={"_target_": "my_scorer.Sizes", "samples": 4})
    assert "| tiny | wanda | Sizes |" in lines(tmp_path)[-1]


def test_not_finite_values_do_not_stop_the_table(tmp_path: Path) -> None:
    write_run(tmp_path, "a", math.inf)
    write_run(tmp_path, "b", 1.0, seed=1)
    assert "inf (n=2)" in "\n".join(lines(tmp_path))


def test_settings_have_a_column_where_there_are_some_and_a_bar_does_not_end_a_cell(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 70.0, skip_layers=["fc1|fc2"])
    write_run(tmp_path, "b", 71.0, skip_layers=[])
    table = lines(tmp_path)
    assert table[0].startswith("| model | pruner | coarse stage | settings | metric |")
    assert any('| skip_layers=["fc1/fc2"] |' in line for line in table)
    assert {line.count("|") for line in table} == {table[0].count("|")}


@pytest.mark.parametrize("option", [[], ["--csv", "elsewhere.csv"]])
def test_the_command_prints_the_table_and_writes_the_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "sweep", "a", 70.0)
    assert main(["sweep", *option]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == lines(tmp_path / "sweep")
    file = Path(option[1] if option else "sweep/report/table.csv")
    assert f"table: {file}" in err
    assert file.read_text().startswith(
        "model,pruner,coarse stage,settings,metric,sparsity,realised,n,mean,deviation,dense\n"
    )


@pytest.mark.parametrize("option", ["--csv", "--output"])
def test_a_place_that_can_not_be_written_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    write_run(tmp_path, "run", 70.0)
    (tmp_path / "file").touch()
    assert main([str(tmp_path), option, str(tmp_path / "file" / "place")]) == 2
    said = capsys.readouterr().err
    assert f"error: no report: {tmp_path / 'file'}" in said
    assert "a file is where a folder has to be; remove it or choose another place" in said
    assert "Errno" not in said
