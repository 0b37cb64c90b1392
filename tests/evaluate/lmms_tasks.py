"""Tasks of lmms-eval in local files."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest

from ecoflap.evaluate.lmms_eval_tasks import import_harness
from tests.api.conftest import picture

HARNESS = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed: see docs/experiments.md",
)
TASK = """
task: {name}
dataset_path: imagefolder
dataset_kwargs: {{data_dir: {folder}/pictures}}
test_split: train
output_type: {kind}
doc_to_visual: !function show.{show}
doc_to_text: "what shape is there ?"
doc_to_target: "answer"
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
"""
WRITTEN = """generation_kwargs: {max_new_tokens: 3, temperature: 0, do_sample: false}
process_results: !function show.score
"""
FILTERED = """filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: letter, filter: [{function: regex, regex_pattern: "^(.)"}, {function: take_first}]}
"""
CHOSEN = """doc_to_choice: [circle, triangle]
"""
SHOW = """
def one(doc):
    return [doc["image"]]

def two(doc):
    return [doc["image"], doc["image"]]

def none(doc):
    return []

def score(doc, results):
    return {"length": len(results[0]), "dict": {"score": float(len(results[0]) > 5)}}
"""


def write_tasks(folder: Path) -> Path:
    """Five pictures, and tasks that show one of them, the same twice, or none."""
    (folder / "pictures").mkdir()
    rows = [{"file_name": f"{number}.png", "answer": number % 2} for number in range(5)]
    for row, number in zip(rows, range(5), strict=True):
        picture(number).save(folder / "pictures" / str(row["file_name"]))
    (folder / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "show.py").write_text(SHOW)
    for name in ("one", "two", "none"):
        text = TASK.format(name=name, folder=folder, kind="generate_until", show=name, metric="length")
        (folder / f"{name}.yaml").write_text(text + WRITTEN)
    text = TASK.format(name="choice", folder=folder, kind="multiple_choice", show="one", metric="acc")
    (folder / "choice.yaml").write_text(text + CHOSEN)
    return folder


def index_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a test's own tasks: building the index of all takes seconds."""
    import_harness()
    from lmms_eval import tasks

    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
