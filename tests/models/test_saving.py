"""Saved models are safetensors that load again, on every release of transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

import ecoflap
from ecoflap.models.core.towers import Selection
from ecoflap.models.core.wide_parts import DTYPE_OPTION
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.models.offload.load import load_offloaded
from ecoflap.storage.checkpoint import write_checkpoint
from ecoflap.storage.results import verify
from tests import tiny
from tests.cli.conftest import tiny_llama  # noqa: F401 - a fixture
from tests.models.deep import offloaded


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


@pytest.mark.parametrize("form", ["dense", "bitmask"])
def test_parts_in_fp32_leave_the_rest_in_half_precision(form: str, tmp_path: Path) -> None:
    """The queries of BLIP-2 are its first weight, and stay in fp32 in a model of float16."""
    if not hasattr(transformers, "Blip2Config"):
        pytest.skip(f"transformers {transformers.__version__} has no BLIP-2")
    made: Any = tiny.BLIP2["blip2_opt"]()
    made.save_pretrained(tmp_path / "made")
    module = type(made).from_pretrained(tmp_path / "made", **{DTYPE_OPTION: torch.float16})
    dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    assert torch.float16 in dtypes.values()
    model = replace(tiny.build("blip2_opt"), module=module, processor=None)
    for _ in range(2):
        write_checkpoint(model, None, tmp_path / "saved", form)
        again = ecoflap.load_pruned(tmp_path / "saved", device="cpu")
        assert {name: tensor.dtype for name, tensor in again.state_dict().items()} == dtypes
        assert_same(again, module)


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
def test_the_class_that_was_loaded_is_named(offload: str, tiny_llama: Path, tmp_path: Path) -> None:
    """A masked language model is loaded as a causal one, and saved as that."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    size = {**tiny.SIZE, "intermediate_size": 24, "max_position_embeddings": 32}
    config = transformers.BertConfig(vocab_size=len(tokenizer), is_decoder=True, **size)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "made", safe_serialization=True)
    tokenizer.save_pretrained(tmp_path / "made")
    model = offloaded(tmp_path / "made", offload, tmp_path / "work")
    write_checkpoint(model, None, tmp_path / "saved")
    assert type(ecoflap.load_pruned(tmp_path / "saved", device="cpu")) is type(model.module)


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
def test_the_dtype_that_was_loaded_is_recorded(offload: str, tiny_llama: Path, tmp_path: Path) -> None:
    loader = CausalLM(path=str(tiny_llama), dtype="bfloat16")
    model = load_offloaded(loader, torch.device("cpu"), Selection(), offload, tmp_path / "work")
    write_checkpoint(model, None, tmp_path / "saved")
    saved = ecoflap.load_pruned(tmp_path / "saved", device="cpu")
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("wide", ["lm_head.weight", "model.norm.weight"])
def test_a_config_without_a_dtype(wide: str, tiny_llama: Path, tmp_path: Path) -> None:
    """The dtype is that of the first weight by name, wherever the file has it."""
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    without = {name: value for name, value in settings.items() if name not in ("dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(without))
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file({**weights, wide: weights[wide].float()}, folder / "model.safetensors", {"format": "pt"})
    dtypes = [
        {weight.dtype for weight in offloaded(folder, kind, tmp_path / kind).module.parameters()}
        for kind in ("none", "cpu", "disk")
    ]
    assert dtypes == 3 * [{torch.float32 if wide == "lm_head.weight" else torch.bfloat16}]


def test_tied_embeddings_are_saved_once(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_attention_heads": 2}
    module = OPTForCausalLM(OPTConfig(vocab_size=64, num_hidden_layers=2, **sizes))
    result = ecoflap.prune(module, pruner="magnitude", score="none", sparsity=0.5)
    folder = ecoflap.save(result, tmp_path / "saved")
    assert verify(folder) == []
    assert_same(ecoflap.load_pruned(folder), module)
