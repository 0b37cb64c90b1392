"""Runs over checkpoints whose names transformers converts on load: with the weights on the disk the same
results, and a checkpoint that loads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result, verify
from tests import tiny
from tests.cli.test_vlm import language, save_llava, tokenizer
from tests.models.test_conversion import MODELS, as_it_is, resave, vision_first

Run = Callable[..., Result]


def loaded(model_class: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What from_pretrained makes of a checkpoint, which has to have every weight."""
    module, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return dict(module.state_dict())


def stored_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as opened:
            names |= set(opened.keys())
    return names


def compare(run: Run, overrides: list[str], model_class: Any, tmp_path: Path) -> None:
    """Run with all weights in memory and with them on the disk, and compare results, weights, names and
    masks.
    """
    overrides = [*overrides, "model.save=true", "cache_mode=off"]
    expected = run(overrides, "plain")
    result = run([*overrides, "runtime.offload=disk"], "away")
    assert (result.metrics, result.model) == (expected.metrics, expected.model)
    errors = [
        {name: layer.pop("error") for name, layer in one.sparsity["layers"].items()}
        for one in (result, expected)
    ]
    assert result.sparsity == expected.sparsity
    # Some processors add up in another order where weights lie at other addresses.
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)
    folders = [tmp_path / name / "checkpoint" for name in ("away", "plain")]
    ours, theirs = (loaded(model_class, folder) for folder in folders)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    masks = [load_masks(folder / "masks.bits") for folder in folders]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    assert stored_names(folders[0]) == stored_names(folders[1])
    assert verify(tmp_path / "away") == []


@pytest.mark.parametrize("score", ["none", "first_order"])
@pytest.mark.parametrize("kind", ["gemma3", "mixtral", "qwen2_moe", "deepseek_v3"])
@pytest.mark.every_run("gemma3-none", "deepseek_v3-first_order", "mixtral-first_order", "qwen2_moe-none")
def test_language_models(
    run: Run, text_run: list[str], tiny_llama: Path, tmp_path: Path, kind: str, score: str
) -> None:
    torch.manual_seed(0)
    build, rename = MODELS[kind]
    module = build()
    module.save_pretrained(tmp_path / "model")
    resave(tmp_path / "model", rename)
    hf.AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "model")
    overrides = [override for override in text_run if not override.startswith(("model.path", "score."))]
    overrides += [f"model.path={tmp_path / 'model'}", f"score={score}", "towers=[language]"]
    compare(run, overrides, type(module), tmp_path)


def save_onevision(folder: Path) -> None:
    words = tokenizer()
    vision = hf.SiglipVisionConfig(**tiny.VISION, vision_use_head=False)
    places = {
        f"{kind}_token_index": words.convert_tokens_to_ids(token)
        for kind, token in (("image", "<image>"), ("video", "<|video_pad|>"))
    }
    text = hf.Qwen2Config(**language(len(words)), bos_token_id=1, eos_token_id=2)
    config = hf.LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_grid_pinpoints=[[8, 8], [8, 16]], **places
    )
    hf.LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    images = hf.LlavaOnevisionImageProcessor(
        size={"height": 8, "width": 8}, image_grid_pinpoints=[[8, 8], [8, 16]]
    )
    video = hf.LlavaOnevisionVideoProcessor(size={"height": 8, "width": 8})
    options = {
        "num_image_tokens": 4,
        "vision_feature_select_strategy": "full",
        "video_token": "<|video_pad|>",
    }
    hf.LlavaOnevisionProcessor(images, words, video, **options).save_pretrained(folder)


@pytest.mark.parametrize(
    ("save", "model_class"),
    [
        (save_llava, "LlavaForConditionalGeneration"),
        (save_onevision, "LlavaOnevisionForConditionalGeneration"),
    ],
    ids=["llava", "llava_onevision"],
)
@pytest.mark.parametrize("rename", [as_it_is, vision_first], ids=["saved", "old"])
@pytest.mark.every_run("old-llava", "saved-llava_onevision")
def test_vision_language_models(
    run: Run, tmp_path: Path, save: Callable[[Path], None], model_class: str, rename: Callable[[str], str]
) -> None:
    torch.manual_seed(0)
    save(tmp_path / "model")
    resave(tmp_path / "model", rename)
    overrides = [
        "model=vlm",
        f"model.path={tmp_path / 'model'}",
        "model.prompt='USER: <image> {} ASSISTANT:'",
        "score=none",
    ]
    overrides += [
        "calibration=easy_vqa",
        "calibration.samples=4",
        "task=easy_vqa",
        "task.limit=4",
        "tracking=none",
        "device=cpu",
    ]
    compare(run, overrides, getattr(hf, model_class), tmp_path)
