"""Vision-language models whose picture is one tensor, of 16 x 16 pixels in patches of 8 or 4."""

from __future__ import annotations

from ecoflap.data.batch import Sample
from tests.zoo.architecture import IMAGE_TOKEN, Draw
from tests.zoo.parts import ID, INDEX, LAST, MROPE, TOKENS, TYPES, text, vision, vision_language
from tests.zoo.pictures import (
    VIDEO_TOKEN,
    gemma3_sample,
    gemma4_sample,
    lfm2_sample,
    paddleocr_sample,
    paligemma_sample,
    pixels,
    seq2seq_sample,
)
from tests.zoo.small import GROUPED, VISION


def high_resolution_sample(draw: Draw) -> Sample:
    """A picture at two resolutions."""
    return {**pixels(4)(draw), "high_res_pixel_values": draw.normal(1, 3, 64, 64)}


WHOLE_PICTURES = [
    vision_language(
        "aya_vision",
        "AyaVision",
        {
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "text_config": text("cohere2", **TYPES),
            **INDEX,
            **LAST,
            "downsample_factor": 2,
            "alignment_intermediate_size": 32,
        },
        pixels(1),
    ),
    vision_language(
        "cohere2_vision",
        "Cohere2Vision",
        {
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "text_config": text("cohere2", **TYPES),
            **ID,
            "downsample_factor": 2,
            "alignment_intermediate_size": 32,
        },
        pixels(1),
    ),
    vision_language(
        "paligemma",
        "PaliGemma",
        {
            "vision_config": vision("siglip_vision_model", vision_use_head=False, projection_dim=32),
            "text_config": text("gemma"),
            **INDEX,
            "projection_dim": 32,
        },
        paligemma_sample,
    ),
    vision_language(
        "internvl",
        "InternVL",
        {
            "vision_config": vision(image_size=[16, 16], patch_size=[8, 8]),
            "text_config": text("qwen2"),
            **ID,
            "downsample_ratio": 0.5,
        },
        pixels(1),
    ),
    vision_language(
        "got_ocr2",
        "GotOcr2",
        {
            "vision_config": {
                "hidden_size": 32,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 4,
                "window_size": 2,
                "global_attn_indexes": [1],
                "mlp_dim": 48,
                "mlp_ratio": 1.5,
            },
            "text_config": text("qwen2"),
            **ID,
        },
        pixels(16, 1, 3, 64, 64),
    ),
    vision_language(
        "mistral3",
        "Mistral3",
        {
            "vision_config": vision("pixtral", head_dim=8, patch_size=4),
            "text_config": text("mistral"),
            **INDEX,
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
        },
        pixels(4, image_sizes=[[16, 16]]),
    ),
    vision_language(
        "lighton_ocr",
        "LightOnOcr",
        {
            "vision_config": vision("pixtral", head_dim=8),
            "text_config": text("qwen3"),
            **ID,
            "spatial_merge_size": 2,
        },
        pixels(1, image_sizes=[[16, 16]]),
    ),
    vision_language(
        "idefics3",
        "Idefics3",
        {"vision_config": vision(), "text_config": text("llama"), **ID, "scale_factor": 2, "pad_token_id": 0},
        pixels(1, 1, 1, 3, 16, 16),
    ),
    vision_language(
        "smolvlm",
        "SmolVLM",
        {"vision_config": vision(), "text_config": text("llama"), **ID, "scale_factor": 2, "pad_token_id": 0},
        pixels(1, 1, 1, 3, 16, 16),
    ),
    vision_language(
        "gemma3",
        "Gemma3",
        {
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "text_config": text("gemma3_text", **TYPES),
            "image_token_index": IMAGE_TOKEN,
            "mm_tokens_per_image": 1,
        },
        gemma3_sample,
    ),
    vision_language(
        "ovis2",
        "Ovis2",
        {
            "vision_config": vision(vocab_size=64, hidden_stride=1, num_visual_indicator_tokens=4),
            "text_config": text("qwen2"),
            **ID,
            "hidden_size": 32,
            "vocab_size": 64,
            "visual_indicator_token_ids": [50, 51, 52, 53],
        },
        pixels(4),
    ),
    vision_language(
        "deepseek_vl",
        "DeepseekVL",
        {
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "text_config": text("llama"),
            **ID,
        },
        pixels(4),
    ),
    vision_language(
        "lfm2_vl",
        "Lfm2Vl",
        {
            "vision_config": vision("siglip2_vision_model", num_patches=16),
            "text_config": text("lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3),
            **ID,
            "downsample_factor": 2,
            "projector_hidden_size": 32,
        },
        lfm2_sample,
    ),
    vision_language(
        "gemma4",
        "Gemma4",
        {
            "vision_config": vision(
                head_dim=8,
                num_key_value_heads=4,
                pooling_kernel_size=2,
                position_embedding_size=64,
                patch_size=4,
            ),
            "text_config": {
                **GROUPED,
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "sliding_window": 4,
                "num_kv_shared_layers": 2,
                "vocab_size_per_layer_input": 64,
                "hidden_size_per_layer_input": 8,
            },
            "audio_config": None,
            **ID,
            "audio_token_id": 59,
            "video_token_id": VIDEO_TOKEN,
        },
        gemma4_sample,
    ),
    vision_language(
        "paddleocr_vl",
        "PaddleOCRVL",
        {"vision_config": vision(patch_size=4), "text_config": {**GROUPED, **MROPE}, **TOKENS},
        paddleocr_sample,
    ),
    vision_language(
        "qianfan_ocr",
        "QianfanOCR",
        {
            "vision_config": vision(image_size=[16, 16], patch_size=[8, 8]),
            "text_config": text("qwen3"),
            **ID,
            "downsample_ratio": 0.5,
        },
        pixels(1),
    ),
    vision_language(
        "janus",
        "Janus",
        {
            "vision_config": {
                **VISION,
                "mlp_ratio": 1.5,
                "projection_dim": 32,
                "num_image_tokens": 4,
                "depth": 2,
            },
            "text_config": text("llama"),
            "vq_config": {
                "embed_dim": 8,
                "num_embeddings": 16,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "projection_dim": 32,
                "image_token_embed_dim": 32,
                "num_patches": 4,
            },
            **ID,
        },
        pixels(4),
    ),
    vision_language(
        "deepseek_vl_hybrid",
        "DeepseekVLHybrid",
        {
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "high_res_vision_config": {
                "model_type": "sam_vision_model",
                "hidden_size": 32,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 4,
                "window_size": 2,
                "global_attn_indexes": [1],
                "mlp_dim": 48,
                "mlp_ratio": 1.5,
            },
            "text_config": text("llama"),
            **ID,
        },
        high_resolution_sample,
    ),
    vision_language(
        "florence2",
        "Florence2",
        {
            "vision_config": {
                "depths": [1, 1],
                "patch_size": [7, 3],
                "patch_stride": [4, 2],
                "patch_padding": [3, 1],
                "patch_prenorm": [False, True],
                "embed_dim": [16, 32],
                "num_heads": [2, 4],
                "num_groups": [2, 4],
                "window_size": 2,
                "projection_dim": 32,
                "drop_path_rate": 0.0,
                "max_position_embeddings": 16,
                "max_temporal_embeddings": 4,
            },
            "text_config": {
                "model_type": "bart",
                "vocab_size": 64,
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 48,
                "max_position_embeddings": 64,
                "dropout": 0.0,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "decoder_start_token_id": 2,
            },
            **ID,
        },
        seq2seq_sample(5),
    ),
]
