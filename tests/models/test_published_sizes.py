"""Real dimensions on the meta device: the towers, layers and weights that the papers count."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, Blip2Config, Blip2ForConditionalGeneration, LlamaConfig

from ecoflap.models.loading import skeleton
from ecoflap.models.towers import find_towers, select


def counts(module: object) -> dict[str, tuple[int, int, int]]:
    """{tower: (blocks, layers, weights)} of what is pruned by default."""
    towers = select(find_towers(module), None)  # type: ignore[arg-type]
    return {tower.name: (len(tower.blocks), len(tower.layers), sum(layer.size for layer in tower.layers)) for tower in towers}


def test_blip2_flan_t5_xl_has_588_layers_in_87_blocks() -> None:
    config = Blip2Config(
        vision_config={"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16},
        qformer_config={"encoder_hidden_size": 1408},
        text_config={
            "model_type": "t5", "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 32,
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "vocab_size": 32128,
        },
    )  # fmt: skip
    found = counts(skeleton(Blip2ForConditionalGeneration, config))
    assert found == {"vision": (39, 156, 984_023_040), "encoder": (24, 168, 1_157_627_904), "decoder": (24, 264, 1_560_281_088)}
    assert sum(blocks for blocks, _, _ in found.values()) == 87
    assert sum(layers for _, layers, _ in found.values()) == 588


def test_llama_7b_has_224_layers() -> None:
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32)
    blocks, layers, weights = counts(skeleton(AutoModelForCausalLM, config))["language"]
    assert (blocks, layers) == (32, 224)
    assert weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
