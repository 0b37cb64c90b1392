"""Vision-language models whose picture is a row of patches, as in the lines of Qwen-VL and GLM-V."""

from __future__ import annotations

import torch

from tests.zoo.architecture import IMAGE_TOKEN
from tests.zoo.parts import (
    AUDIO,
    DEEPSTACK,
    EXPERTS,
    FEATURES,
    ID,
    MROPE,
    OMNI,
    OMNI_INDEX,
    PATCHED,
    ROPE,
    TOKENS,
    TYPES,
    glm,
    text,
    vision_language,
)
from tests.zoo.pictures import VIDEO_TOKEN, ernie_sample, patches
from tests.zoo.small import GROUPED

COMPASS = {
    "text_config": {
        **GROUPED,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 4,
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
    },
    "vision_config": DEEPSTACK,
    **TOKENS,
}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

PATCH_ROWS = [
    vision_language(
        "qwen2_vl",
        "Qwen2VL",
        {
            "text_config": {**GROUPED, **MROPE},
            **TOKENS,
            "vision_config": {**PATCHED, "embed_dim": 32, "mlp_ratio": 2},
        },
        patches(FEATURES),
    ),
    vision_language(
        "qwen2_5_vl",
        "Qwen2_5_VL",
        {
            "text_config": {**GROUPED, **MROPE},
            **TOKENS,
            "vision_config": {**PATCHED, "fullatt_block_indexes": [1], "window_size": 16},
        },
        patches(FEATURES),
    ),
    vision_language(
        "qwen3_vl",
        "Qwen3VL",
        {
            "text_config": {**GROUPED, "num_hidden_layers": 3, "rope_parameters": ROPE},
            **TOKENS,
            "vision_config": DEEPSTACK,
        },
        patches(FEATURES),
    ),
    vision_language(
        "qwen3_vl_moe",
        "Qwen3VLMoe",
        {
            "text_config": {**GROUPED, "num_hidden_layers": 3, "rope_parameters": ROPE, **EXPERTS},
            **TOKENS,
            "vision_config": DEEPSTACK,
        },
        patches(FEATURES),
    ),
    vision_language(
        "qwen3_5",
        "Qwen3_5",
        {
            "text_config": {
                **GROUPED,
                "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
                **LINEAR,
                "layer_types": ["linear_attention", "full_attention"],
            },
            **TOKENS,
            "vision_config": {**DEEPSTACK, "deepstack_visual_indexes": []},
        },
        patches(FEATURES),
    ),
    vision_language(
        "qwen3_5_moe",
        "Qwen3_5Moe",
        {
            "text_config": {
                **GROUPED,
                "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
                **LINEAR,
                "layer_types": ["linear_attention", "full_attention"],
                **EXPERTS,
            },
            **TOKENS,
            "vision_config": {**DEEPSTACK, "deepstack_visual_indexes": []},
        },
        patches(FEATURES),
    ),
    vision_language("glm4v", "Glm4v", glm(), patches(FEATURES)),
    vision_language(
        "glm4v_moe",
        "Glm4vMoe",
        glm(
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            n_shared_experts=1,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
        ),
        patches(FEATURES),
    ),
    vision_language("glm_ocr", "GlmOcr", glm(), patches(FEATURES)),
    vision_language(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoe",
        {
            "vision_config": {**PATCHED, "temporal_merge_size": 2},
            "text_config": {
                **GROUPED,
                **MROPE,
                "moe_intermediate_size": [24, 24],
                "moe_k": 2,
                "moe_num_experts": 4,
                "moe_num_shared_experts": 1,
                "mlp_layer_types": ["dense", "sparse"],
            },
            **TOKENS,
        },
        ernie_sample,
    ),
    vision_language(
        "video_llama_3",
        "VideoLlama3",
        {
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "patch_size": 4,
            },
            "text_config": text("qwen2"),
            **ID,
            "video_token_id": VIDEO_TOKEN,
        },
        lambda draw: {**patches(48, types=False)(draw), "image_merge_sizes": torch.tensor([2])},
    ),
    vision_language(
        "qwen2_5_omni_thinker",
        "Qwen2_5OmniThinker",
        {
            "text_config": {**GROUPED, **MROPE},
            "vision_config": {**PATCHED, "fullatt_block_indexes": [1], "window_size": 16},
            "audio_config": AUDIO,
            **OMNI_INDEX,
        },
        patches(FEATURES, types=False),
    ),
    vision_language(
        "qwen3_omni_moe_thinker",
        "Qwen3OmniMoeThinker",
        {
            "text_config": {**GROUPED, "num_hidden_layers": 3, "rope_parameters": ROPE, **EXPERTS},
            "vision_config": DEEPSTACK,
            "audio_config": {**AUDIO, "downsample_hidden_size": 8},
            **OMNI,
        },
        patches(FEATURES, types=False),
    ),
    vision_language("cohere_compass", "CohereCompass", COMPASS, patches(FEATURES)),
    vision_language(
        "exaone4_5",
        "Exaone4_5_",
        {
            "text_config": text("exaone4", **TYPES),
            "vision_config": {
                **PATCHED,
                "fullatt_block_indexes": [1],
                "window_size": 16,
                "num_key_value_heads": 2,
            },
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": VIDEO_TOKEN,
        },
        patches(FEATURES, types=False),
    ),
    vision_language(
        "qwen4_exp",
        "Qwen4Exp",
        {
            "text_config": {
                **GROUPED,
                "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
                **LINEAR,
                **EXPERTS,
                "layer_types": ["linear_attention", "indexed_attention"],
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 8,
                "indexer_budget": 4,
                "indexer_compress_ratio": 2,
                "hc_lowrank": 8,
                "hc_count": 2,
            },
            "vision_config": {**DEEPSTACK, "deepstack_visual_indexes": []},
            **TOKENS,
        },
        patches(FEATURES),
    ),
    vision_language(
        "glm46v",
        "Glm46V",
        {
            "text_config": {"model_type": "glm4v_text", **glm()["text_config"]},
            "vision_config": {"model_type": "glm4v_vision", **glm()["vision_config"]},
            **TOKENS,
        },
        patches(FEATURES),
    ),
]
