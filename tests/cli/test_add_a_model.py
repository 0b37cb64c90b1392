"""The page "Add a model", followed word by word with a tiny model in place of the named one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tests.cli import forked
from tests.cli.conftest import ROOT, WORDS

PAGE = (ROOT / "docs" / "add_a_model.md").read_text()
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(WORDS) + 2,
}


@pytest.fixture
def followed(tmp_path: Path) -> Path:
    """A folder with the page's files in it, as they stand there, each under the name in its comment."""
    for content, name in re.findall(r"```yaml\n((?:# @[^\n]*\n)?# (\S+)\n.*?)```", PAGE, re.DOTALL):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path


def save(module: torch.nn.Module, tokenizer: Path, folder: Path) -> Path:
    module.save_pretrained(folder)  # type: ignore[operator]
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def run(folder: Path, *overrides: str) -> str:
    parts = ["--config-dir", "my_parts/conf", *overrides, "tracking=none", "device=cpu"]
    done = forked.main(parts, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_name_in_ten_lines(followed: Path, tiny_llama: Path, text_file: Path) -> None:
    torch.manual_seed(0)
    model = save(GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)), tiny_llama, followed / "pythia")
    held_out = followed / "held_out.txt"
    held_out.write_text(text_file.read_text()[1:])  # a copy of the same text would be refused
    data = [
        f"calibration.path={text_file}",
        f"task.path={held_out}",
        "calibration.sequence_length=16",
        "task.sequence_length=16",
        "score=first_order",
    ]
    printed = run(followed, "model=pythia", f"model.path={model}", "sparsity=0.5", *data)
    assert "gpt_neox.layers" in printed
    assert "pythia on wikitext2" in printed
