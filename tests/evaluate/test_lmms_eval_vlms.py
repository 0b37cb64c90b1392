"""Current vision-language models, tiny and random, answer lmms-eval as transformers alone would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoflap.evaluate.lmms_eval_model import answers, question
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.vlm.vlm import VisionLanguage
from ecoflap.storage.results import Result
from tests.api.conftest import picture
from tests.cli.conftest import run
from tests.evaluate.lmms_tasks import HARNESS, index_alone, write_tasks
from tests.vlms.folders import MODELS

ASKED = "what shape is there ?"
OPTIONS = {"max_new_tokens": 3, "do_sample": False}
SMALL = ["calibration.samples=4", "batch_size=2", "sparsity=0.5", "score=none", "pruner=magnitude"]
SMALL += [
    "tracking=none",
    "device=cpu",
    "cache_mode=off",
    "task=lmms_eval",
    "task.harness_tasks=[one,two,none]",
]
__all__ = ["run"]


def written(module: Any, processor: Any, numbers: list[int], chat: dict[str, Any]) -> str:
    """What transformers alone makes of a question about pictures."""
    parts = [{"type": "image", "image": picture(number).convert("RGB")} for number in numbers]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [*parts, {"type": "text", "text": ASKED}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **chat,
    )
    with torch.no_grad():
        tokens = module.generate(**inputs, **OPTIONS)
    answer = tokens[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(answer, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("brief", [None, "\nAnswer the question using a single word or phrase."])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.every_run("*-None")
def test_answers_are_those_of_transformers_alone(name: str, brief: str | None) -> None:
    module, processor = MODELS[name].build()
    chat = {"enable_thinking": False} if "enable_thinking" in processor.chat_template else {}
    model = VisionLanguage("anything", brief=brief, chat=chat).from_module(module, processor, Selection())
    shown = [[0], [1], [2, 3], [], [4]]
    rows = [question(ASKED, [picture(number) for number in numbers]) for numbers in shown]
    found = answers(model, [(row, OPTIONS) for row in rows], batch_size=2)
    assert found == [written(module, processor, numbers, chat) for numbers in shown]


@HARNESS
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.every_run("qwen3_vl", "llava_onevision")
def test_a_run_with_its_paired_changes(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path
) -> None:
    index_alone(monkeypatch)
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks")
    MODELS[name].save(tmp_path / name)
    choice = MODELS[name].choice or name
    model = [f"model={choice}", f"model.path={tmp_path / name}"]
    metrics = run([*model, *SMALL, f"task.include_path={tmp_path / 'tasks'}"]).metrics
    dense, pruned = (metrics[when]["lmms_eval"] for when in ("dense", "pruned"))
    for task in ("one", "two", "none"):
        assert pruned[f"{task}/samples"] == 5
        change = pruned[f"{task}/length"] - dense[f"{task}/length"]
        assert pruned[f"{task}/length_change"] == pytest.approx(change)
        assert pruned[f"{task}/length_change_error"] >= 0
