"""The page: one file that needs nothing else, parses, and says what there is to say."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ecoflap.cli.report import main
from tests.sweeps.report.conftest import write_run
from tests.sweeps.report.test_sections import start

pytestmark = pytest.mark.long

CELLS = {"td", "th", "caption"}
VOID = {"meta", "input", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag in CELLS:
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if CELLS & set(self.open):
            self.cells[-1] += data

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a metric each way, several methods, an infinite value, a run that failed, names that HTML
    would take for its own.
    """
    folder = tmp_path_factory.mktemp("report") / "sweep"
    for index, sparsity in enumerate((0.5, 0.6)):
        for seed in (0, 1):
            write_run(folder, f"v{index}{seed}", 70.0 + seed, sparsity=sparsity, seed=seed)
            write_run(
                folder,
                f"u{index}{seed}",
                71.0,
                sparsity=sparsity,
                seed=seed,
                score={"name": "none"},
                towers=["<b>&"],
            )
        write_run(
            folder,
            f"t{index}",
            {"text": {"perplexity": (20.0, math.inf)[index]}},
            dense=None,
            sparsity=sparsity,
            model__name="llama<script>",
            model__path="llama<script>",
        )
    start(folder, "failed", "sparsity=0.9", "score=<zeroth>")
    return folder


@pytest.fixture(scope="module")
def html(sweep: Path) -> str:
    """Its page."""
    return make(sweep, "--title", "A & B")


def make(folder: Path, *options: str) -> str:
    assert main([str(folder), *options]) == 0
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_nothing_is_read_from_elsewhere(html: str) -> None:
    page = Page(html)
    links = [
        *page.values("href"),
        *page.values("src"),
        *page.values("xlink:href"),
        *page.values("srcset"),
        *page.values("action"),
    ]
    assert links
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?![\"']?#)", html) == []
    assert "@import" not in html
    assert "<link" not in html
    assert not re.search(r"\b(fetch|import|XMLHttpRequest|WebSocket)\b\s*\(", html)


def test_names_are_ids_once_and_every_reference_has_one(html: str) -> None:
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    references = {
        link[1:] for name in ("href", "xlink:href") for link in page.values(name) if link.startswith("#")
    } | set(re.findall(r"url\(#(.+?)\)", html))
    assert references <= set(ids)


def test_what_it_says(html: str) -> None:
    page = Page(html)
    assert "<title>A &amp; B</title>" in html
    assert "10 runs in" in html
    assert "1 without a result" in html
    assert "score=&lt;zeroth&gt;" in html
    assert "llama<script>" not in html
    assert "tiny on vqa" in html
    for cell in (
        "70.50 ± 0.71",
        "over 2 seeds",
        "inf",
        "failed",
        "v00",
        "0123456789",
        '["<b>&"]',
        "text/perplexity",
        "names methods",
        "averaged over",
    ):
        assert any(cell in text for text in page.cells), cell
    assert "torch 2.6.0" in html
    assert html.count("<svg") == html.count("<figure") == 9


def test_hardware_is_named_and_costs_of_several_are_not_compared(tmp_path: Path) -> None:
    """The note is there from the second on."""
    cpu = {"device": "cpu", "name": "EPYC", "threads": 2, "processes": 1}
    write_run(tmp_path, "a", 70.0, seed=0, record={"hardware": cpu})
    write_run(tmp_path, "b", 71.0, seed=1, record={"hardware": cpu})
    page, note = make(tmp_path), "seconds and memory can't be compared"
    assert "2 runs on EPYC, 2 threads." in page
    assert note not in page
    write_run(tmp_path, "c", 72.0, seed=2, record={"hardware": {**cpu, "device": "cuda", "name": "H100"}})
    page = make(tmp_path)
    assert "2 runs on EPYC, 2 threads, 1 run on H100." in page
    assert note in page


def test_plots_stand_beside_the_page(sweep: Path, html: str) -> None:
    files = list((sweep / "report").iterdir())
    names = {path.stem for path in files if path.suffix == ".png"}
    assert names == {path.stem for path in files if path.suffix == ".pdf"}
    assert names == set(Page(html).values("data-name"))
    assert {"tiny_vqa_accuracy", "tiny_on_vqa_allocation", "tiny_on_vqa_cost"} <= names
    assert all(path.stat().st_size > 1000 for path in files if path.suffix in {".png", ".pdf"})


def test_the_result_comes_first(html: str) -> None:
    section = html[html.index("tiny on vqa</h2>") :]
    places = [section.index(text) for text in ('class="result"', "<figure", "<table", "What differs")]
    assert places == sorted(places)
    result = " ".join(section[: section.index("<figure")].split())
    assert "dense 80.00; highest at sparsity 0.5 <b>71.00</b> (wanda, uniform" in result


def test_every_metric_of_a_task_is_shown_once(sweep: Path, html: str) -> None:
    for name in ("vqa/accuracy", "vqa/loss", "text/perplexity"):
        assert len(re.findall(rf"<caption><span>{name} \(.*by target", html)) == 1


def test_plots_take_the_colour_of_the_text(html: str) -> None:
    assert "fill: currentColor" in html
    assert "#2b2c2e" not in html


def test_the_same_runs_make_the_same_page(sweep: Path) -> None:
    assert make(sweep / "v00") == make(sweep / "v00")


def test_one_run_an_asked_metric_and_another_folder(sweep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "elsewhere"
    assert main([str(sweep / "v10"), "--output", str(folder), "--metric", "vqa/loss"]) == 0
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert "1 run in" in html
    assert "What differs" not in html
    assert "The same in this run" in html
    assert "(lower is better)" in html
    page = Page(html)
    assert [name for name in page.values("data-name") if "_vqa_" in name and "_on_" not in name] == [
        "tiny_vqa_loss",
        "tiny_vqa_loss_differences",
    ]
    assert html.count("vqa/accuracy (higher is better)") == 1  # among the other metrics
    assert "vqa/loss" in (folder / "table.csv").read_text()
    assert not (sweep / "v10" / "report").exists()


def test_a_metric_that_no_run_has(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep), "--metric", "vqa/acuracy"]) == 2
    assert (
        "no report: --metric vqa/acuracy: no run here has it; did you mean vqa/accuracy?"
        in capsys.readouterr().err
    )


def test_runs_that_were_not_evaluated_have_allocations_and_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "a", {}, record={"metrics": {}})
    html = make(tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "no table: no run was evaluated after pruning" in err
    assert "Sparsity of every block" in html
    assert html.count("<svg") == 3


def test_the_page_is_written_even_if_nobody_reads_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], close_output: Callable[[], None]
) -> None:
    write_run(tmp_path, "a", 70.0)
    close_output()
    with pytest.raises(BrokenPipeError):
        main([str(tmp_path)])
    assert (tmp_path / "report" / "index.html").exists()
    assert "no report" not in capsys.readouterr().err


def test_nothing_to_show_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no report: no result.json below" in capsys.readouterr().err


def test_a_title_may_have_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    """As the name of a folder may."""
    write_run(tmp_path, "a", 70.0)
    assert "<h1>caf?</h1>" in make(tmp_path, "--title", os.fsdecode(b"caf\xe9"))


def test_a_new_page_leaves_no_plots_of_an_earlier_one(tmp_path: Path) -> None:
    """Beside it, where --wandb takes them from; what else is there stays."""
    write_run(tmp_path / "sweep", "a", 70.0)
    output = tmp_path / "report"
    given = [str(tmp_path / "sweep"), "--output", str(output), "--metric"]
    assert main([*given, "vqa/loss"]) == 0
    assert (output / "tiny_vqa_loss.png").is_file()
    (output / "own.png").touch()
    assert main([*given, "vqa/accuracy"]) == 0
    names = {path.name for path in output.iterdir()}
    assert {"own.png", "tiny_vqa_accuracy.png", "tiny_vqa_accuracy.pdf"} <= names
    assert not any("loss" in name for name in names)
