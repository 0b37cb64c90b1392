"""Layers whose weights lie in the memory of another parameter are refused; parts that lie apart are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import ecoflap
from ecoflap.errors import UserError
from tests.api.conftest import llama

pytestmark = pytest.mark.skipif(
    not hasattr(hf, "LlamaForCausalLM"), reason="the oldest release of transformers has no LLaMA"
)


def lay(one: Any, other: Any, weight: Tensor, other_weight: Tensor) -> None:
    one.weight, other.weight = nn.Parameter(weight), nn.Parameter(other_weight)


def alike(one: Any, other: Any) -> None:
    other.weight = nn.Parameter(one.weight.data)


def overlapping(one: Any, other: Any) -> None:
    rows = len(one.weight)
    whole = torch.randn(2 * rows - 1, one.weight.shape[1])
    lay(one, other, whole[:rows].detach(), whole[rows - 1 :].detach())


def halves(one: Any, other: Any) -> None:
    lay(one, other, *torch.randn(2 * len(one.weight), one.weight.shape[1]).chunk(2))


def columns(one: Any, other: Any) -> None:
    lay(one, other, *torch.randn(len(one.weight), 2 * one.weight.shape[1]).chunk(2, dim=1))


@pytest.mark.parametrize("share", [alike, overlapping])
def test_two_parameters_in_the_same_memory_are_refused(share: Callable[[Any, Any], None]) -> None:
    given = llama()
    module: Any = given.module
    first, second = (layer.mlp for layer in module.model.layers)
    share(first.up_proj, second.up_proj)
    with pytest.raises(
        UserError,
        match=r"layers\.\d\.mlp\.up_proj\.weight and .*\d\.mlp\.up_proj\.weight are two parameters .*clone",
    ):
        ecoflap.prune(module, given.processor, sparsity=0.5, score="none", pruner="magnitude")
    assert len(ecoflap.load(module, given.processor, skip_layers=["up_proj"]).layers) == 12
    second.up_proj.weight = nn.Parameter(second.up_proj.weight.clone())
    assert len(ecoflap.load(module, given.processor).layers) == 14


def test_a_layer_in_the_memory_of_an_embedding_is_refused() -> None:
    module: Any = llama().module
    width = module.config.hidden_size
    module.model.layers[0].self_attn.q_proj.weight = nn.Parameter(
        module.model.embed_tokens.weight.data[:width]
    )
    with pytest.raises(UserError, match=r"(embed_tokens.*q_proj|q_proj.*embed_tokens).* in the same memory"):
        ecoflap.load(module)


@pytest.mark.parametrize("share", [halves, columns])
def test_parts_of_a_tensor_that_lie_apart_are_layers(share: Callable[[Any, Any], None]) -> None:
    module: Any = llama().module
    share(module.model.layers[0].mlp.gate_proj, module.model.layers[0].mlp.up_proj)
    assert len(ecoflap.load(module).layers) == 14
