"""One model of each kind through main.py's pipeline: the masks and scores of full forward passes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoflap.blocks.loss_batches import loss_batches
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune import driver
from ecoflap.storage.results import Result, verify
from tests.cli.test_vlm import save_qwen
from tests.zoo.architectures import ARCHITECTURES
from tests.zoo.compare import Comparison, block_by_block, compare_layers, compare_zeroth_order, recording

EPS = 0.05
LANGUAGE = {"decoder": "llama", "hybrid": "qwen3_next", "experts": "mixtral"}
# CLIP's texts are as long as the longest of their batch; what fills a text up does not count.
MASKED = ("input_ids", "attention_mask")


@pytest.fixture
def text_folder(tiny_llama: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Save a language model of the zoo beside a tokenizer."""

    def save(name: str) -> Path:
        ARCHITECTURES[name].module().save_pretrained(tmp_path / name)  # type: ignore[operator]
        for file in tiny_llama.glob("tokenizer*"):
            shutil.copy(file, tmp_path / name)
        return tmp_path / name

    return save


def trimmed(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample without its padding."""
    mask = sample.get("attention_mask")
    if mask is None or mask.dim() != 1:
        return sample
    return {name: tensor[mask.bool()] if name in MASKED else tensor for name, tensor in sample.items()}


@pytest.mark.parametrize("kind", [*LANGUAGE, "encoder-decoder", "vision-language", "encoder"])
def test_a_run_gives_what_full_forward_passes_give(
    run: Callable[..., Result],
    text_run: list[str],
    text_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    scored, overrides = (
        2,
        ["calibration.samples=4", "tracking=none", "device=cpu", f"cache={tmp_path / 'cache'}"],
    )
    if kind in LANGUAGE:
        if (reason := ARCHITECTURES[LANGUAGE[kind]].missing()) is not None:
            pytest.skip(reason)
        overrides = [override for override in text_run if not override.startswith("model.path=")]
        overrides.append(f"model.path={text_folder(LANGUAGE[kind])}")
    elif kind == "vision-language":
        pytest.importorskip("transformers", "4.49")
        save_qwen(tmp_path / "vlm")
        overrides += [
            "model=vlm",
            f"model.path={tmp_path / 'vlm'}",
            "calibration=easy_vqa",
            "task=easy_vqa",
            "task.limit=2",
        ]
    elif kind == "encoder-decoder":
        overrides += ["model=t5_mini", "task.limit=2"]
    else:
        scored, overrides = (
            8,
            ["model=clip_mini", "task.limit=20", *overrides, "calibration.samples=8"],
        )  # of several classes
    seen: dict[str, torch.Tensor] = {}
    kept: dict[str, Any] = {}

    def watched(
        model: PrunableModel, calibration: Any, pruner: Any, allocation: Any, *rest: Any, **options: Any
    ) -> Any:
        kept.update(dense=copy.deepcopy(model), model=model, calibration=calibration, allocation=allocation)
        kept["report"] = prune(
            model, calibration, recording(pruner, model, seen), allocation, *rest, **options
        )
        return kept["report"]

    prune = driver.prune
    monkeypatch.setattr(driver, "prune", watched)
    run(
        [
            *overrides,
            f"score.samples={scored}",
            f"score.batch_size={scored}",
            f"score.eps={EPS}",
            "model.save=true",
        ]
    )
    assert verify(tmp_path / "run") == []
    result, dense = Comparison(), kept["dense"]
    (batch,) = loss_batches(dense, kept["calibration"].take(scored), scored)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["importance"]
    compare_zeroth_order(result, scores, copy.deepcopy(dense), batch, EPS, 0)
    samples = [trimmed(sample) for sample in kept["calibration"].samples]
    for layers in block_by_block(dense, kept["calibration"]):
        compare_layers(
            result,
            layers,
            dense,
            kept["model"],
            kept["report"].masks,
            kept["allocation"],
            samples,
            seen,
        )
    assert result.wrong == []
    assert len(seen) == len(dense.layers) == len(scores)
