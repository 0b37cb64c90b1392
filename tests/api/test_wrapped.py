"""Layers whose weights are computed from others are refused; convolutions may be normalised so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils as torch_utils
import transformers as hf
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import ecoflap
from ecoflap.errors import UserError
from tests.api.conftest import llama
from tests.api.test_loading import refused


def test_layers_whose_weights_are_computed_are_refused() -> None:
    adapted = get_peft_model(llama().module, LoraConfig(target_modules=["q_proj"]))
    refused(
        "layers.0.self_attn.q_proj has a peft adapter", "merge_and_unload", model=adapted.base_model.model
    )
    assert ecoflap.load(adapted.merge_and_unload()).layers
    injected = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), llama().module)
    refused("layers.0.self_attn.q_proj has a peft adapter", "merge_and_unload", model=injected)
    module: Any = llama().module
    layer = module.model.layers[1].mlp.up_proj
    torch_prune.l1_unstructured(layer, "weight", amount=0.3)
    refused("layers.1.mlp.up_proj.weight is masked", 'prune.remove(model.get_submodule("', model=module)
    torch_prune.remove(layer, "weight")
    parametrize.register_parametrization(layer, "weight", torch.nn.Identity())
    refused("layers.1.mlp.up_proj.weight has parametrizations", "remove_parametrizations", model=module)
    parametrize.remove_parametrizations(layer, "weight")
    assert ecoflap.load(module).layers
    torch_utils.weight_norm(layer)
    refused("layers.1.mlp.up_proj.weight is computed by a WeightNorm", "remove_weight_norm(", model=module)
    torch_utils.remove_weight_norm(layer)
    torch_utils.spectral_norm(layer)
    refused(
        "layers.1.mlp.up_proj.weight is computed by a SpectralNorm", "remove_spectral_norm(", model=module
    )
    torch_utils.remove_spectral_norm(layer)
    assert ecoflap.load(module).layers


def test_packed_weights_and_biases_that_are_computed_are_refused() -> None:
    block = torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    module = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([block])})
    loss = {"loss": lambda *_: torch.zeros(1)}
    torch_utils.weight_norm(block.self_attn, "in_proj_weight")
    said = "blocks.0.self_attn.in_proj_weight is computed by a WeightNorm"
    refused(said, '.self_attn"), "in_proj_weight") first', model=module, **loss)
    torch_utils.remove_weight_norm(block.self_attn, "in_proj_weight")
    parametrize.register_parametrization(block.linear1, "bias", torch.nn.Identity())
    refused("linear1.bias has parametrizations", 'linear1"), "bias") first', model=module, **loss)
    parametrize.remove_parametrizations(block.linear1, "bias")
    assert ecoflap.load(module, **loss).layers


def test_weights_that_were_made_under_inference_mode() -> None:
    with torch.inference_mode():
        module = llama().module
    refused("were made under torch.inference_mode()", "or under torch.no_grad()", model=module)
    with pytest.raises(UserError, match=r"were made under torch\.inference_mode\(\)"):
        ecoflap.prune(module, sparsity=0.5, score="none", pruner="magnitude")


def test_parts_that_are_compiled_are_refused() -> None:
    module: Any = llama().module
    module.model.layers[1].compile()
    refused('"model.layers.1")._compiled_call_impl = None', "compiled in place", model=module)
    module.get_submodule("model.layers.1")._compiled_call_impl = None
    assert ecoflap.load(module).layers
    module.compile()
    refused("LlamaForCausalLM is compiled", "set model._compiled_call_impl = None", model=module)
    module._compiled_call_impl = None
    module.model.layers[0] = torch.compile(module.model.layers[0])
    refused("model.layers.0 is what torch.compile returned", "._orig_mod back", model=module)


@pytest.mark.parametrize("name", ["", "model.layers.1.mlp"])
def test_a_part_with_a_compiled_forward_is_refused(name: str) -> None:
    module: Any = llama().module
    part = module.get_submodule(name)
    part.forward = torch.compile(part.forward, backend="eager")
    here = f'model.get_submodule("{name}")' if name else "model"
    refused(f"{name or 'LlamaForCausalLM'} is compiled in place", f"; del {here}.forward, and", model=module)
    del part.forward
    assert ecoflap.load(module).layers


def test_a_result_that_was_compiled_in_place_is_saved(tmp_path: Path) -> None:
    one = llama()
    result = ecoflap.prune(one.module, one.processor, sparsity=0.5, score="none", pruner="magnitude")
    result.model.compile()
    ecoflap.save(result, tmp_path / "out")
    loaded = ecoflap.load(tmp_path / "out", device="cpu").module.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in result.model.state_dict().items())


@pytest.mark.parametrize("part", ["model", "model.layers.0"])
def test_parts_that_were_compiled_since_are_not_saved_under_their_names(part: str, tmp_path: Path) -> None:
    result = ecoflap.prune(llama().module, sparsity=0.5, score="none", pruner="magnitude")
    plain = result.model.get_submodule(part)
    result.model.set_submodule(part, torch.compile(plain))
    for saved in (result, result.prunable):
        with pytest.raises(UserError, match=rf"{part} is what torch\.compile returned; .*\._orig_mod back"):
            ecoflap.save(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result.model.set_submodule(part, plain)
    ecoflap.save(result.prunable, tmp_path / "out")


def test_a_result_that_got_adapters_is_not_saved_beside_them(tmp_path: Path) -> None:
    result = ecoflap.prune(llama().module, sparsity=0.5, score="none", pruner="magnitude")
    adapted = get_peft_model(result.model, LoraConfig(target_modules=["q_proj"]))
    for saved in (result, result.prunable):
        with pytest.raises(
            UserError, match=r"self_attn\.q_proj has a peft adapter, .* merge the adapters first"
        ):
            ecoflap.save(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    adapted.unload()
    ecoflap.save(result, tmp_path / "out")


def test_a_convolution_with_a_normalised_weight_is_taken() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": (8,), "conv_kernel": (3,), "conv_stride": (2,)}
    config = hf.Wav2Vec2Config(
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **convolutions, **sizes
    )
    model = ecoflap.load(hf.Wav2Vec2ForCTC(config), loss=lambda *_: torch.zeros(1))
    assert model.layers
