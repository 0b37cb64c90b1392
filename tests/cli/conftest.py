"""A tiny model folder, a text and a token file, and a way to run the pipeline as main.py does, in this
process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import save_file

from ecoflap.data.captions.metrics import CaptionMetrics
from ecoflap.run import config as run_config
from ecoflap.run import pipeline
from ecoflap.storage.installation import conf_folder
from ecoflap.storage.results import Result

ROOT = Path(__file__).parents[2]
SENTENCE = "the a cat dog sees likes house tree small old and or not in on under with red blue green"
WORDS = tuple(SENTENCE.split())


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of two blocks with a word tokenizer, as save_pretrained writes it."""
    pytest.importorskip("transformers.models.llama", reason="the oldest release of transformers has no LLaMA")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny_llama"
    torch.manual_seed(0)
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", *WORDS])}
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(vocabulary), tie_word_embeddings=False, initializer_range=0.3, **sizes)
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    picks = torch.randint(len(WORDS), (600,), generator=torch.Generator().manual_seed(1)).tolist()
    file.write_text(" ".join(WORDS[pick] for pick in picks))
    return file


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    draw = lambda rows, seed: torch.randint(
        2, 2 + len(WORDS), (rows, 12), generator=torch.Generator().manual_seed(seed)
    )
    save_file({"calibration": draw(6, 2), "test": draw(4, 3), "floats": torch.zeros(2, 2)}, file)
    return file


def on_text(model: Path, tokens: Path) -> list[str]:
    """Overrides that put a language model and rows of tokens under any run."""
    return [
        "model=causal_lm",
        f"model.path={model}",
        "calibration=token_file",
        f"calibration.path={tokens}",
        "calibration.key=calibration",
        "task=token_perplexity",
        f"task.path={tokens}",
        "task.key=test",
    ]


@pytest.fixture
def text_run(tiny_llama: Path, token_file: Path, tmp_path: Path) -> list[str]:
    """Overrides that put the tiny language model and its token rows under any run."""
    return [
        *on_text(tiny_llama, token_file),
        "score.batch_size=2",
        "tracking=none",
        "device=cpu",
        f"cache={tmp_path / 'cache'}",
    ]


def composed(overrides: list[str]) -> DictConfig:
    """The config that main.py would get, with the published coarse stage unless one is chosen."""
    chosen = (
        "score=",
        "allocation=",
        "+experiment=",
        "+sweep",
        "pruner=global",
        "pruner=upop",
        "pruner=reap",
    )
    if not any(one.startswith(chosen) for one in overrides):
        overrides = ["score=zeroth_order", "allocation=water_filling", *overrides]
    return composed_as_given(overrides)


def composed_as_given(overrides: list[str]) -> DictConfig:
    """The config that main.py would get."""
    run_config.register()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=overrides)


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score captions without METEOR, whose program takes longer to start than a small run takes."""
    here = CaptionMetrics.here
    monkeypatch.setattr(CaptionMetrics, "here", lambda option: replace(here(option), java=False, spice=False))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Compose and run; the run's folder is ``tmp_path / name``."""

    def start(overrides: list[str], name: str = "run") -> Result:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        result = pipeline.run(composed(overrides), folder)
        assert result is not None
        return result

    return start
