"""The paper's experiments on NLVR2, on a tiny BLIP-NLVR of LAVIS and a small folder in the data set's
layout.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ecoflap.storage.results import Result
from tests.cli.conftest import run  # noqa: F401 - a fixture
from tests.data.vqa_folders import write_nlvr2
from tests.lavis import tiny
from tests.lavis.test_pipeline import written


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    data = tmp_path / "nlvr2"
    data.mkdir()
    for split in ("train", "dev", "test1"):
        write_nlvr2(data, split)
    torch.save({"model": tiny.module("nlvr").state_dict()}, tmp_path / "dense.pth")
    model = [
        f"model.checkpoint={tmp_path / 'dense.pth'}",
        f"model.tokenizer={tiny.bert_tokenizer(tmp_path / 'bert')}",
    ]
    given = [
        f"task.path={data}",
        f"calibration.path={data}",
        "calibration.samples=6",
        "task.limit=6",
        "batch_size=2",
    ]
    return [
        *model,
        f"++model.architecture={written(tiny.NLVR)}",
        *given,
        "tracking=none",
        "device=cpu",
        f"cache={tmp_path / 'cache'}",
    ]


@pytest.mark.parametrize("name", ["wanda", "ecoflap"])
def test_an_experiment_runs(run: Callable[..., Result], overrides: list[str], name: str) -> None:
    short = ["score.samples=4", "score.batch_size=2"] if name == "ecoflap" else []
    result = run([f"+experiment=blip/nlvr2/{name}", *overrides, *short])
    assert result.sparsity["prunable"] == pytest.approx(0.5, abs=2e-3)
    assert set(result.sparsity["towers"]) == {"vision", "text"}
    assert result.metrics["pruned"]
    sparsities = {layer["sparsity"] for layer in result.sparsity["layers"].values()}
    assert (max(sparsities) - min(sparsities) > 0.01) == (name == "ecoflap")
