"""Saved models are safetensors that load again, on every release of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

import ecoflap
from ecoflap.storage.results import verify
from tests import tiny


def assert_same(found: torch.nn.Module, module: torch.nn.Module) -> None:
    state: dict[str, Any] = found.state_dict()
    assert state.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_family_loads_again(family: str, tmp_path: Path) -> None:
    model = replace(tiny.build(family), processor=None)
    if not isinstance(model.module, PreTrainedModel):
        pytest.skip("its library has no from_pretrained")
    model.save(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert_same(type(model.module).from_pretrained(tmp_path), model.module)


def test_tied_embeddings_are_saved_once(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_attention_heads": 2}
    module = OPTForCausalLM(OPTConfig(vocab_size=64, num_hidden_layers=2, **sizes))
    result = ecoflap.prune(module, pruner="magnitude", score="none", sparsity=0.5)
    folder = ecoflap.save(result, tmp_path / "saved")
    assert verify(folder) == []
    assert_same(ecoflap.load_pruned(folder), module)
