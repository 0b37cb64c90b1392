"""Current vision-language models, tiny and random, from a folder to a checkpoint that transformers reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image

from ecoflap.storage.results import Result, verify
from tests.cli.conftest import run
from tests.vlms.folders import MODELS

IN_EVERY_RUN = [
    ("qwen3_vl", "wanda"),
    ("qwen3_5_vl", "wanda"),
    ("internvl3_5", "wanda"),
    ("gemma3", "sparsegpt"),
]
SMALL = ["calibration.samples=4", "task.limit=4", "task.batch_size=3", "batch_size=2", "score.batch_size=2"]
SMALL += ["tracking=none", "device=cpu", "sparsity=0.5", "cache_mode=off"]
__all__ = ["run"]
METHODS = {
    "wanda": ["pruner=wanda", "score=first_order", "model.save=true"],
    "sparsegpt": ["pruner=sparsegpt", "score=zeroth_order", "model.dtype=bfloat16"],
}


def cases() -> list[Any]:
    """The models and methods; most run with the zoo only."""
    every = [(name, method) for name in MODELS for method in METHODS]
    return [case if case in IN_EVERY_RUN else pytest.param(*case, marks=pytest.mark.zoo) for case in every]


@pytest.mark.parametrize(("name", "method"), cases())
def test_both_towers_are_pruned_saved_and_answer(
    run: Callable[..., Result], name: str, method: str, tmp_path: Path
) -> None:
    MODELS[name].save(tmp_path / name)
    choice = MODELS[name].choice or name
    result = run([f"model={choice}", f"model.path={tmp_path / name}", *SMALL, *METHODS[method]])
    assert result.sparsity["prunable"] == pytest.approx(0.5, abs=1e-3)
    assert {"vision", "language"} <= set(result.sparsity["towers"])
    assert min(result.sparsity["towers"].values()) > 0
    assert result.metrics["pruned"]["easy_vqa"]["questions"] == 4
    if method == "wanda":
        assert verify(tmp_path / "run") == []
        reads_and_answers(tmp_path / "run" / str(result.checkpoint))


def reads_and_answers(checkpoint: Path) -> None:
    """Plain transformers reads the checkpoint and answers by its chat template."""
    module, notes = hf.AutoModelForImageTextToText.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(notes.values())
    processor = hf.AutoProcessor.from_pretrained(checkpoint)
    asked = [{"type": "image", "image": Image.new("RGB", (64, 64), "red")}, {"type": "text", "text": "what?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": asked}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        tokens = module.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert tokens.shape[1] > inputs["input_ids"].shape[1]
