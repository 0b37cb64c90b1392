"""Whole runs on pictures with captions: calibrate, prune and measure the mini models on Easy-VQA's pictures
in COCO's and Flickr30k's layouts.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ecoflap.storage.results import Result
from tests.cli.conftest import composed, run, without_java  # noqa: F401 - fixtures
from tests.data import caption_folders as folders

pytestmark = pytest.mark.long

OPTIONS = [
    "score=none",
    "sparsity=0.8",
    "tracking=none",
    "device=cpu",
    "cache_mode=off",
    "calibration.samples=16",
]


def metrics(result: Result, task: str) -> tuple[dict[str, float], dict[str, float]]:
    return result.metrics["dense"][task], result.metrics["pruned"][task]


@pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="pip install -e '.[captions]'")
def test_captions_of_coco(run: Callable[..., Result], tmp_path: Path) -> None:
    data = folders.karpathy(tmp_path / "coco")
    options = [f"task.path={data}", f"calibration.path={data}", "task.limit=20", "task.batch_size=8"]
    dense, pruned = metrics(
        run([*OPTIONS, "model=blip_caption_mini", "task=coco_caption", "calibration=coco", *options]),
        "coco_caption",
    )
    assert next(iter(dense)) == "cider"
    assert dense["cider"] > 300 > pruned["cider"]
    assert dense["bleu_1"] > 90
    assert dense["pictures"] == 20


@pytest.mark.parametrize("model", ["blip_retrieval_mini", "clip_mini"])
def test_retrieval_on_flickr30k(run: Callable[..., Result], tmp_path: Path, model: str) -> None:
    data = folders.karpathy(tmp_path / "flickr30k", "flickr30k")
    options = [f"task.path={data}", f"calibration.path={data}", "task.k_test=20"]
    dense, pruned = metrics(
        run([*OPTIONS, f"model={model}", "task=flickr30k", "calibration=flickr30k", *options]), "flickr30k"
    )
    assert next(iter(dense)) == ("text_recall_1_match" if model == "blip_retrieval_mini" else "text_recall_1")
    assert dense["recall_mean"] > 80
    assert dense["recall_mean"] > pruned["recall_mean"] + 5
    nearest = (tmp_path / "run" / "predictions" / "flickr30k_dense_nearest.jsonl").read_text().splitlines()
    rows = json.loads(nearest[0])["predictions"]
    hits = [
        any(caption // 5 == picture for caption in row["captions"][:1])
        for picture, row in enumerate(rows[:24])
    ]
    assert 100 * sum(hits) / 24 == pytest.approx(dense["text_recall_1"])
    assert len(rows) == 24 + 24 * 5


@pytest.mark.parametrize("name", ["coco_retrieval", "nocaps"])
def test_other_tasks_compose(name: str) -> None:
    config = composed(
        [
            "model=blip2_mini",
            f"task={name}",
            "task.path=somewhere",
            "calibration=cc3m",
            "calibration.path=elsewhere",
        ]
    )
    assert config.task.layout == {"coco_retrieval": "coco", "nocaps": "nocaps"}[name]
    assert config.task.get("k_test") == {"coco_retrieval": 256, "nocaps": None}[name]  # as published
    assert config.calibration.prefix


def test_prefixes_for_blip2(run: Callable[..., Result], tmp_path: Path) -> None:
    data = folders.cc3m(tmp_path / "cc3m")
    result = run(
        [*OPTIONS, "model=blip2_mini", "calibration=cc3m", f"calibration.path={data}", "task.limit=20"]
    )
    assert result.sparsity["prunable"] == pytest.approx(0.8, abs=1e-3)
