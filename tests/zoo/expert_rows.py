"""Vision-language models that read a row of patches, and whose language model has routed experts."""

from __future__ import annotations

import torch

from ecoflap.data.batch import Sample
from ecoflap.models.families.vlm.vlm import answer_loss
from tests.zoo.architecture import Architecture, Draw
from tests.zoo.native_resolution import VIDEO, WINDOWS, grid_sample, row_vision
from tests.zoo.parts import FEATURES, ID, INDEX, PATCHED, ROPE, TOKENS, TYPES, vision, vision_language
from tests.zoo.pictures import VIDEO_TOKEN, behind_picture, patches, pixels
from tests.zoo.small import GROUPED

LATENT = {
    **GROUPED,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
INDEXED = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 2}
INKLING = {
    **GROUPED,
    "unpadded_vocab_size": 64,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 4,
    "d_rel": 8,
    "rel_extent": 16,
    "layer_types": ["hybrid_sliding", "hybrid"],
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}


def merged_sample(draw: Draw) -> Sample:
    """Four pieces of a picture of 2 x 2 patches each, on a grid of pieces."""
    return {**pixels(4, 4, 8, 8, 3)(draw), "image_grid_thw": torch.tensor([[1, 2, 2]])}


EXPERT_ROWS = [
    vision_language(
        "hy_v4_vl",
        "HYV4VL",
        {
            "text_config": {
                **LATENT,
                **INDEXED,
                "rope_parameters": ROPE,
                "mlp_layer_types": ["dense", "sparse"],
                "layer_types": ["indexed_attention"] * 2,
                "indexer_types": ["full"] * 2,
                "hc_mult": 2,
            },
            "vision_config": row_vision(out_hidden_size=32, num_key_value_heads=4, max_image_size=32),
            **VIDEO,
        },
        grid_sample(6, 48, types=True),
    ),
    vision_language(
        "minimax_m3_vl",
        "MiniMaxM3Sparse",
        {
            "vision_config": row_vision(image_size=16),
            "text_config": {
                **GROUPED,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "dense_intermediate_size": 48,
                "shared_intermediate_size": 24,
                "rotary_dim": 4,
                "mlp_layer_types": ["dense", "sparse"],
                "layer_types": ["full_attention", "full_attention"],
                "index_n_heads": 2,
                "index_head_dim": 8,
            },
            **INDEX,
            "video_token_index": VIDEO_TOKEN,
            "projector_hidden_size": 32,
            "merged_hidden_size": 128,
        },
        grid_sample(4, FEATURES),
    ),
    vision_language(
        "kimi_k25",
        "Kimi_K25",
        {
            "text_config": {"model_type": "deepseek_v3", **LATENT, "first_k_dense_replace": 1},
            "vision_config": row_vision(pos_emb_height=4, pos_emb_width=4),
            "projection_hidden_size": 32,
            **TOKENS,
        },
        grid_sample(4, 3, 4, 4),
    ),
    vision_language(
        "muse_spark",
        "MuseSpark",
        {
            "text_config": {
                **GROUPED,
                **TYPES,
                "moe_intermediate_size": 24,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "moe_hidden_size": 24,
                "mlp_layer_types": ["sparse", "sparse"],
            },
            "vision_config": row_vision(
                pos_emb_height=4, pos_emb_width=4, max_position_embeddings=16, layer_types=WINDOWS
            ),
            "audio_config": {
                "hidden_sizes": [8, 8],
                "depths": [1, 1],
                "patch_sizes": [4, 2],
                "num_hidden_layers": 2,
                "out_hidden_size": 32,
            },
            "audio_token_id": 59,
            **VIDEO,
            "out_hidden_size": 128,
            "projector_hidden_size": 48,
        },
        grid_sample(4, FEATURES),
    ),
    vision_language(
        "inkling2",
        "Inkling2",
        {
            "text_config": INKLING,
            "vision_config": row_vision(
                mlp_ratio=1.5, posemb_grid_size=4, projection_hidden_dim=48, text_hidden_size=32
            ),
            **ID,
        },
        merged_sample,
    ),
    vision_language(
        "inkling2_loop",
        "Inkling2Loop",
        {
            "text_config": {
                **INKLING,
                "n_layers_per_attn_res_block": 1,
                "num_hidden_layers": 4,
                "layer_types": ["hybrid_sliding", "hybrid"] * 2,
                "loop_layer_index_start": 1,
                "loop_layer_index_end": 3,
                "loop_num_passes": 2,
                "loop_gate_rank": 4,
            },
            "vision_config": row_vision(
                mlp_ratio=1.5, posemb_grid_size=4, projection_hidden_dim=48, text_hidden_size=32
            ),
            **ID,
        },
        merged_sample,
    ),
    vision_language(
        "dots3_note",
        "Dots3Note",
        {
            "text_config": {
                **LATENT,
                **INDEXED,
                "head_dim": 16,
                "mlp_layer_types": ["dense", "sparse"],
                "layer_types": ["indexed_attention"] * 2,
                "shared_experts_intermediate_size": 24,
            },
            "vision_config": row_vision(
                moe_intermediate_size=24,
                mlp_layer_types=["dense", "sparse"],
                num_local_experts=4,
                num_experts_per_tok=2,
                router_scaling_factor=1.0,
                adapter_in_dim=32,
                adapter_out_dim=32,
            ),
            "audio_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "feature_size": 8,
                "downsample_hidden_size": 8,
                "adapter_input_size": 32,
                "adapter_out_dim": 32,
            },
            **VIDEO,
            "audio_token_id": 59,
        },
        grid_sample(4, 48),
    ),
    vision_language(
        "glm5_next",
        "Glm5Next",
        {
            "text_config": {
                **LATENT,
                **INDEXED,
                "qk_rope_head_dim": 0,
                "mlp_layer_types": ["dense", "sparse"],
                "layer_types": ["linear_attention", "indexed_attention"],
                "indexer_types": ["full"] * 2,
                "linear_head_dim": 8,
                "linear_num_heads": 4,
                "hc_mult": 2,
                "index_kpool": 2,
            },
            "vision_config": {**PATCHED, "image_size": 16, "projection_intermediate_size": 48},
            **VIDEO,
        },
        patches(FEATURES),
    ),
    vision_language(
        "mistral_large4",
        "MistralLarge4",
        {
            "vision_config": vision("pixtral", head_dim=8, patch_size=4),
            "text_config": {
                **LATENT,
                **INDEXED,
                "mlp_layer_types": ["dense", "sparse"],
                "layer_types": ["indexed_attention"] * 2,
                "indexer_types": ["full"] * 2,
                "no_rope_layers": [1, 0],
                "kv_source_layers": [0, 1],
            },
            **INDEX,
        },
        pixels(4, image_sizes=[[16, 16]]),
    ),
    Architecture(
        "mistral4",
        "experts",
        "Mistral4ForCausalLM",
        answer_loss,
        {**LATENT, "head_dim": 16, "first_k_dense_replace": 1},
        lambda draw: behind_picture(draw, 0),
    ),
]
