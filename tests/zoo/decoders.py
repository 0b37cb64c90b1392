"""Every decoder-only language model of transformers, with experts and state-space layers or without."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ecoflap.models.causal_lm import language_loss
from tests.zoo.architecture import Architecture

LATENT = {"num_key_value_heads": 4}  # latent attention has as many
LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"
FOUR = {"num_hidden_layers": 4}

SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "longcat_flash",
            "minicpm3",
            "sarvam_mla",
            "youtu",
        ),
        LATENT,
    ),
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "bailing_hybrid": {**LATENT, "layer_types": [LINEAR, FULL], "head_dim": 16, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "blt": {
        "encoder_hash_byte_group_vocab": 50,
        "encoder_hash_byte_group_size": [2, 3],
        "patch_in_forward": False,
        **{
            f"{part}_config": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48, **extra}
            for part, extra in {
                "encoder": {"hidden_size_global": 64, "vocab_size": 64},
                "decoder": {"hidden_size_global": 64, "vocab_size": 64},
                "global": {"hidden_size": 64},
                "patcher": {"vocab_size": 64},
            }.items()
        },
    },
    "cohere_compass_text": {
        "rope_parameters": {FULL: None, SLIDING: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        "layer_types": [SLIDING, FULL],
    },
    "cpmant": {
        "dim_head": 8,
        "dim_ff": 48,
        "position_bias_num_buckets": 16,
        "position_bias_max_distance": 64,
        "prompt_types": 4,
        "prompt_length": 4,
        "segment_types": 4,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "head_dim": 16,
        "qk_rope_head_dim": 8,
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 16,
        "hc_mult": 2,
        "num_nextn_predict_layers": 0,
    },
    "dory": {"layer_types": [SLIDING, FULL]},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 16, "layer_types": ["indexed_attention", "indexed_attention"]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        **FOUR,
        "intermediate_size": 48,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {
        **FOUR,
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "granitemoehybrid": {"layer_types": [LINEAR, FULL]},
    "inkling_text": {"rel_extent": 16, "d_rel": 8, "unpadded_vocab_size": 64},
    "inkling2_text": {"rel_extent": 16, "d_rel": 8, "unpadded_vocab_size": 64},
    "inkling2_loop_text": {"rel_extent": 16, "d_rel": 8, "unpadded_vocab_size": 64},
    "jamba": {**FOUR, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "kimi_linear": {**LATENT, "layer_types": [LINEAR, FULL], "num_experts_per_tok": 2},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", FULL]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 24],
        "feed_forward_size": 48,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,
        "num_buckets": 2,
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roc_bert": {"pronunciation_embed_dim": 16, "pronunciation_vocab_size": 64, "shape_embed_dim": 16, "shape_vocab_size": 64},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 4, "indexer_compress_ratio": 2},
    "qwen3_next": FOUR,
    "qwen3_5_text": FOUR,
    "qwen3_5_moe_text": FOUR,
    "nemotron_h": {"moe_shared_expert_intermediate_size": 24},
    "xlm": {"emb_dim": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": [LINEAR, "hybrid", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": [LINEAR, "hybrid", "hybrid"],
        "num_key_value_heads": 4,
        "n_mamba_heads": 4,
        "adapter_rank": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
# In the list of decoders, but read pictures, sound, or another model's states.
MULTIMODAL = (
    "dots3_note",
    "emu3",
    "fuyu",
    "gemma3",
    "gemma3n",
    "gemma4",
    "gemma4_assistant",
    "gemma4_unified",
    "gemma4_unified_assistant",
    "git",
    "got_ocr2",
    "llama4",
    "mllama",
    "moshi",
    "moss_transcribe_diarize",
    "musicgen",
    "musicgen_melody",
    "phi4_multimodal",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen4_exp",
)
STATE_SPACE = (
    "bailing_hybrid",
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "kimi_linear",
    "lara_mini",
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "qwen4_exp_text",
    "recurrent_gemma",
    "rwkv",
    "xlstm",
    "zamba",
    "zamba2",
)
EXPERTS = (
    "afmoe",
    "aria_text",
    "axk1",
    "axk2",
    "cohere2_moe",
    "dbrx",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "dots1",
    "dots3_note_text",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "hy_v3",
    "hy_v4",
    "inkling2_loop_text",
    "inkling2_text",
    "inkling_text",
    "jetmoe",
    "kolibri1",
    "laguna",
    "llama4_text",
    "longcat_flash",
    "mellum",
    "mimo_v2_flash",
    "minimax_m2",
    "minimax_m3_vl_text",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "sarvam_mla",
    "sarvam_moe",
    "solar_open",
    "zaya",
)


def _kind(name: str) -> str:
    return "hybrid" if name in STATE_SPACE else "experts" if name in EXPERTS else "decoder"


DECODERS = [
    Architecture(name, _kind(name), model, language_loss, SETTINGS.get(name, {}))
    for name, model in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    if name not in MULTIMODAL
]
