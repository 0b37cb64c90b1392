"""What stays dense in blocks: routers, indexers, and linear classes whose output is no plain product."""

from __future__ import annotations

import re

import pytest
import transformers
from torch import nn

from ecoflap.models.core.routers import routers
from ecoflap.models.core.skipped import Skipped, skipped_weights
from ecoflap.models.core.towers import find_towers, select
from tests.models.meta import architecture, tree

pytestmark = pytest.mark.long

# In each class, the parts of a block that decide; everything else that is linear is a layer.
ROUTED = {
    "MixtralForCausalLM": {"mlp.gate"},
    "OlmoeForCausalLM": {"mlp.gate"},
    "DeepseekV2ForCausalLM": {"mlp.gate"},
    "DeepseekV3ForCausalLM": {"mlp.gate"},
    "DeepseekV4ForCausalLM": {"mlp.gate"},
    "Qwen3MoeForCausalLM": {"mlp.gate"},
    "Qwen2MoeForCausalLM": {"mlp.gate", "mlp.shared_expert_gate"},
    "Qwen3NextForCausalLM": {"mlp.gate", "mlp.shared_expert_gate"},
    "GptOssForCausalLM": {"mlp.router"},
    "PhimoeForCausalLM": {"mlp.router"},
    "AriaTextForCausalLM": {"mlp.router"},
    "Llama4ForCausalLM": {"feed_forward.router"},
    "JambaForCausalLM": {"feed_forward.router"},
    "GraniteMoeForCausalLM": {"block_sparse_moe.router"},
    "JetMoeForCausalLM": {"mlp.router.layer", "self_attention.experts.router.layer"},
    "AfmoeForCausalLM": {"mlp.router.gate"},
    "LongcatFlashForCausalLM": {"mlp.router.classifier"},
    "NllbMoeForConditionalGeneration": {"ffn.router.classifier"},
    "Ernie4_5_VLMoeForConditionalGeneration": {"mlp.text_moe.gate", "mlp.vision_moe.gate"},
    "Gemma3nForCausalLM": {"altup.modality_router"},
    # Their gates belong to attention, state-space layers and MLPs.
    "LlamaForCausalLM": set(),
    "FalconForCausalLM": set(),
    "FalconH1ForCausalLM": set(),
    "T5ForConditionalGeneration": set(),
    "BambaForCausalLM": set(),
    "Qwen3_5ForCausalLM": set(),
    "MiniMaxM2ForCausalLM": {"mlp.gate"},
}
OTHER_PRODUCTS = {
    "DeepseekV4ForCausalLM": {
        "self_attn.o_a_proj": "forward of DeepseekV4GroupedLinear isn't the plain product"
    }
}
# What chooses the tokens that attention reads.
INDEXED = {
    "DeepseekV32ForCausalLM": "self_attn.indexer",
    "DeepseekV4ForCausalLM": "self_attn.compressor.indexer",
    "GlmMoeDsaForCausalLM": "self_attn.indexer",
    "AXK2ForCausalLM": "self_attn.indexer",
}


def left_dense(module: nn.Module) -> list[Skipped]:
    """The matrices that stay dense by default."""
    every = find_towers(module)
    return skipped_weights(module, every, select(every, None))


def inside(name: str) -> str:
    """The module that a weight belongs to, from its block on."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1].removesuffix(".weight")


@pytest.mark.skipif(transformers.__version__ < "5", reason="the parts of these blocks had other names")
@pytest.mark.parametrize("name", ROUTED)
def test_routers_stay_dense_and_nothing_else_that_is_linear_does(name: str) -> None:
    module = architecture(name)
    skipped = [one for one in left_dense(module) if not one.name.endswith("e_score_correction_bias")]
    found = {inside(one.name) for one in skipped if one.reason == "router"}
    assert {re.sub(r"^layer\.\d+\.", "", one) for one in found} == ROUTED[name]
    layers = {
        layer.name.removesuffix(".weight")
        for tower in select(find_towers(module), None)
        for layer in tower.layers
    }
    others = set(OTHER_PRODUCTS.get(name, ()))
    for tower in find_towers(module):
        for path, child in module.get_submodule(tower.path).named_modules(prefix=tower.path):
            if isinstance(child, nn.Linear):
                dense = inside(path) in ROUTED[name] | others or ".indexer." in path
                assert (path in layers) != dense, path


@pytest.mark.parametrize("name", INDEXED)
def test_indexers_stay_dense(name: str) -> None:
    module = architecture(name)
    inner = f".{INDEXED[name]}."
    expected = {path for path, one in module.named_parameters() if inner in path and one.ndim > 1}
    assert expected
    assert {one.name for one in left_dense(module) if one.reason == "indexer"} == expected
    assert not [layer for tower in find_towers(module) for layer in tower.layers if inner in layer.name]


@pytest.mark.parametrize("name", OTHER_PRODUCTS)
def test_a_linear_class_with_another_product_stays_dense_and_says_so(name: str) -> None:
    reasons = {inside(one.name): one.reason for one in left_dense(architecture(name))}
    assert OTHER_PRODUCTS[name].items() <= reasons.items()


def test_experts_are_named_where_they_are_one_tensor() -> None:
    reasons = {inside(one.name): one.reason for one in left_dense(architecture("MixtralForCausalLM"))}
    if "mlp.experts.down_proj" not in reasons:
        pytest.skip("this release has a module per expert")
    assert (
        reasons["mlp.experts.down_proj"] == reasons["mlp.experts.gate_up_proj"] == "experts in one 3-D tensor"
    )


MOE = ("moe.experts.0.w1", "moe.experts.1.w1")
DECIDES = {
    "moe.gate": MOE,
    "moe.gate.wg": MOE,
    "moe.router": MOE,
    "moe.router.layer": MOE,
    "moe.shared_expert_gate": MOE,
    "moe.router_gate": (),
    "altup.modality_router": (),
}
IS_A_LAYER = {
    "mlp.gate": (),
    "mlp.gate_proj": (),
    "moe.experts.0.gate_proj": MOE,
    "moe.shared_experts.gate_proj": MOE,
    "attention.gate": MOE,
    "attention.output_gate": MOE,
    "per_layer_input_gate": MOE,
}


@pytest.mark.parametrize(("path", "beside"), [*DECIDES.items(), *IS_A_LAYER.items()])
def test_a_gate_is_a_router_where_experts_stand_beside_it(path: str, beside: tuple[str, ...]) -> None:
    module = tree(*(f"layers.0.{one}" for one in ("q_proj", *beside, path)))
    gate = f"layers.0.{path}.weight"
    names = [layer.name for tower in find_towers(module) for layer in tower.layers]
    assert (gate in names) == (path in IS_A_LAYER)
    assert (module.get_submodule(f"layers.0.{path}") in set(routers(module))) == (path in DECIDES)
    assert (
        {gate: "router"} == {one.name: one.reason for one in left_dense(module)}
        if path in DECIDES
        else not left_dense(module)
    )
