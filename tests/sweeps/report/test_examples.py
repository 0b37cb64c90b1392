"""Examples of a run: which run is shown, and what the page says of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from ecoflap.cli.report import main
from tests.sweeps.report.conftest import write_run

pytestmark = pytest.mark.long

DOT = "data:image/png;base64,iVBORw0KGgo="


def keep(run: Path, task: str, **kept: Any) -> None:
    """Write what a run keeps of its items."""
    scores = {"metric": "accuracy", "exponential": False, "dense": [1.0, 1.0], "pruned": [0.0, 1.0]}
    file = run.parent / "predictions" / f"{task}_pruned_items.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**scores, "examples": [], "passage": [], **kept}))


def example(question: str, pruned: str) -> dict[str, str]:
    return {"question": question, "right": "red", "dense": "red", "pruned": pruned, "picture": DOT}


def page(folder: Path) -> str:
    assert main([str(folder)]) == 0
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_the_examples_are_those_of_the_best_method_at_the_highest_sparsity(tmp_path: Path) -> None:
    for name, figure, sparsity, score in (
        ("mild", 90.0, 0.5, "none"),
        ("best", 70.0, 0.6, "zeroth_order"),
        ("worse", 60.0, 0.6, "none"),
    ):
        run = write_run(tmp_path, name, figure, sparsity=sparsity, score={"name": score})
        keep(run, "vqa", examples=[example(f"colour of <{name}>?", "blue")])
    html = page(tmp_path)
    assert "colour of &lt;best&gt;?" in html
    assert "vqa: examples at sparsity 0.6, wanda, zeroth order" in html
    assert "mild&gt;?" not in html
    assert "worse&gt;?" not in html
    assert html.count(f'<img src="{DOT}" alt=""') == 1
    assert re.search(r"dense: red&nbsp;✓<br>pruned: blue</p>", html)


@pytest.mark.parametrize("broken", ["a", "z"])
def test_a_model_without_a_figure_is_not_the_best(tmp_path: Path, broken: str) -> None:
    for name, figure, score in ((broken, math.nan, "none"), ("m", 70.0, "zeroth_order")):
        run = write_run(tmp_path, name, figure, sparsity=0.6, score={"name": score})
        keep(run, "vqa", examples=[example(f"colour of <{name}>?", "blue")])
    assert "colour of &lt;m&gt;?" in page(tmp_path)


def test_a_text_is_coloured_by_the_loss_of_each_token_of_both_models(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", {"text": {"perplexity": 20.0}}, dense={"text": {"perplexity": 10.0}})
    keep(run, "text", metric="perplexity", passage=[[" the", 1.0, 2.0], [" <cat>", 4.0, 25.0]])
    html = page(tmp_path)
    assert "dense: 2.500 nats per token" in html
    assert "pruned: 13.500 nats per token" in html
    colours = re.findall(r'<span style="--loss: ([\d.]+)" title="([\d.]+) nats">(.*?)</span>', html)
    assert colours == [
        ("0.1", "1.00", " the"),
        ("0.4", "4.00", " &lt;cat&gt;"),
        ("0.2", "2.00", " the"),
        ("1", "25.00", " &lt;cat&gt;"),
    ]


def test_damaged_or_foreign_files_show_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 70.0)
    keep(run, "vqa", examples=[example("colour?", "blue")], more=1)
    assert "colour?" not in page(tmp_path)
    (run.parent / "predictions" / "vqa_pruned_items.json").write_text("{")
    assert "examples at" not in page(tmp_path)
