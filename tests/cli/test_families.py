"""model=causal_lm runs decoder LMs of any family unchanged, from a folder, through to a verified
checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Blip2ForConditionalGeneration,
    GPT2Config,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from ecoflap.storage.results import Result, verify
from tests.cli.conftest import WORDS

VOCABULARY = len(WORDS) + 2
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(**SIZES, intermediate_size=32, num_key_value_heads=1, initializer_range=0.3),
    "mistral": MistralConfig(**SIZES, intermediate_size=32, num_key_value_heads=1, initializer_range=0.3),
    "opt": OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64, init_std=0.3),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3
    ),
}


@pytest.fixture(params=CONFIGS)
def family_folder(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(folder)
    for file in tiny_llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
@pytest.mark.every_run("opt-sparsegpt", "mistral-wanda", "qwen2-sparsegpt", "gpt2-wanda")
def test_a_family_runs_and_its_checkpoint_verifies(
    run: Callable[..., Result], text_run: list[str], family_folder: Path, tmp_path: Path, pruner: str
) -> None:
    result = run([*text_run, f"model.path={family_folder}", f"pruner={pruner}", "model.save=true"])
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)
    assert verify(tmp_path / "run") == []
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint")
    name, layer = next(iter(result.sparsity["layers"].items()))
    assert int((module.get_parameter(name) == 0).sum()) == layer["zeros"]


def test_the_embedded_blip2_saves_a_checkpoint_that_loads_and_runs_again(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    shared = [
        "tracking=none",
        "task.limit=100",
        "calibration.samples=16",
        "score=first_order",
        f"cache={tmp_path / 'cache'}",
    ]
    result = run([*shared, "model.save=true"], "first")
    assert verify(tmp_path / "first") == []
    checkpoint = tmp_path / "first" / "checkpoint"
    assert (
        sum(
            int((parameter == 0).sum())
            for parameter in Blip2ForConditionalGeneration.from_pretrained(checkpoint).parameters()
        )
        > 30_000
    )
    again = run([*shared, f"model.path={checkpoint}", "steps=[evaluate]"], "again")
    assert again.metrics["dense"] == result.metrics["pruned"]


@pytest.mark.parametrize("name", ["towers=[vision]", "towers=[qformer]", "towers=[encoder,decoder]"])
@pytest.mark.every_run("towers=[[]qformer]")
def test_towers_of_blip2(run: Callable[..., Result], tmp_path: Path, name: str) -> None:
    result = run(
        [
            name,
            "tracking=none",
            "task.limit=50",
            "calibration.samples=8",
            "score.samples=8",
            f"cache={tmp_path / 'cache'}",
        ]
    )
    assert ",".join(result.sparsity["towers"]) == name[len("towers=[") : -1]
    assert result.sparsity["prunable"] == pytest.approx(0.6, abs=1e-3)
