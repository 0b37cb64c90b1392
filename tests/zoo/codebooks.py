"""Vision-language models of codebooks, bare patches, or image towers of timm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ecoflap.data.batch import Sample
from ecoflap.models.families.vlm.vlm import answer_loss
from tests.zoo.architecture import IMAGE_TOKEN, Architecture, Draw, MakeSample
from tests.zoo.expert_rows import INKLING
from tests.zoo.parts import ID, INDEX, text, vision_language
from tests.zoo.pictures import VIDEO_TOKEN, pixels
from tests.zoo.small import GROUPED

AUTOENCODER = {
    "embed_dim": 8,
    "latent_channels": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
}
TYPED = ["sliding_attention", "full_attention"]


def codes(template: str, first: int, count: int) -> dict[str, int]:
    """{name: token} of the codes of a picture."""
    return {template.format(number): first + number for number in range(count)}


def gemma4_unified_sample(draw: Draw) -> Sample:
    """Four patches of 8 x 8 pixels, and where they lie."""
    places = torch.tensor([[[0, 0], [1, 0], [0, 1], [1, 1]]])
    sample = pixels(4, 1, 4, 192)(draw)
    return {
        **sample,
        "image_position_ids": places,
        "mm_token_type_ids": (sample["input_ids"] == IMAGE_TOKEN).long(),
    }


def with_timm(name: str, model: str, settings: dict[str, Any], sample: MakeSample) -> Architecture:
    """One whose image tower is a model of timm; those whose names begin with test are tiny."""
    return replace(vision_language(name, model, settings, sample), package="timm")


CODEBOOKS = [
    vision_language(
        "chameleon",
        "Chameleon",
        {
            **{name: value for name, value in GROUPED.items() if name != "head_dim"},
            "vocab_size": 72,
            "vq_config": {**AUTOENCODER, "num_embeddings": 4, "resolution": 8},
            "vocabulary_map": {
                "<image>": IMAGE_TOKEN,
                **{f"IMGIMG{letter}Z": 64 + number for number, letter in enumerate("ABCD")},
            },
            **ID,
        },
        pixels(16, 1, 3, 8, 8),
    ),
    vision_language(
        "emu3",
        "Emu3",
        {
            "vq_config": {
                **AUTOENCODER,
                "codebook_size": 4,
                "embed_dim": 4,
                "latent_channels": 4,
                "temporal_downsample_factor": 1,
                "hidden_size": 64,
            },
            "text_config": {**GROUPED, "vocab_size": 72, "attention_dropout": 0.0},
            "vocabulary_map": {
                "<image>": IMAGE_TOKEN,
                "<|extra_200|>": 68,
                **codes("<|visual token {:06d}|>", 64, 4),
            },
            **ID,
        },
        pixels(20, 1, 3, 8, 8, image_sizes=[[8, 8]]),
    ),
    Architecture(
        "fuyu",
        "vision-language",
        "FuyuForCausalLM",
        answer_loss,
        {"text_config": {"model_type": "persimmon", **GROUPED, "hidden_dropout": 0.0}, "patch_size": 8, **ID},
        pixels(4, 1, 4, 192),
    ),
    vision_language(
        "gemma4_unified",
        "Gemma4Unified",
        {
            "vision_config": {
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "mm_embed_dim": 32,
                "mm_posemb_size": 8,
                "output_proj_dims": 32,
            },
            "text_config": {**GROUPED, "layer_types": TYPED, "sliding_window": 4},
            "audio_config": None,
            **ID,
            "audio_token_id": 59,
            "video_token_id": VIDEO_TOKEN,
        },
        gemma4_unified_sample,
    ),
    vision_language(
        "inkling_mm_model",
        "Inkling",
        {
            "text_config": INKLING,
            "vision_config": {
                "patch_size": 4,
                "n_layers": 2,
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 4,
            },
            "audio_config": {"n_mel_bins": 8, "mel_vocab_size": 16},
            **ID,
            "audio_token_id": 59,
        },
        pixels(4, 4, 2, 4, 4, 3),
    ),
    vision_language(
        "apertus1p5",
        "Apertus1p5",
        {
            "text_config": {**GROUPED, "vocab_size": 80},
            "vision_config": {**AUTOENCODER, "codebook_size": 4, "resolution": 8, "spatial_scale_factor": 2},
            "audio_config": {
                "num_filters": 4,
                "upsampling_ratios": [2, 2],
                "hidden_size": 8,
                "codebook_size": 4,
                "codebook_dim": 8,
                "decoder_hidden_size": 32,
                "decoder_intermediate_size": 48,
                "decoder_num_layers": 1,
                "decoder_attention_num_groups": 4,
            },
            **ID,
            "audio_token_id": 59,
            "image_token_offset": 64,
            "audio_token_offset": 68,
        },
        pixels(16, 1, 3, 8, 8, image_sizes=[[8, 8]]),
    ),
    with_timm(
        "fast_vlm",
        "FastVlm",
        {
            "vision_config": {"model_type": "timm_wrapper", "architecture": "test_resnet", "hidden_size": 96},
            "text_config": text("qwen2"),
            **INDEX,
        },
        pixels(4, 1, 3, 64, 64),
    ),
    with_timm(
        "perception_lm",
        "PerceptionLM",
        {
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "test_vit",
                "model_args": {"embed_dim": 64, "img_size": 16, "patch_size": 8},
            },
            "text_config": text("llama"),
            **ID,
            "video_token_id": VIDEO_TOKEN,
        },
        pixels(4, 1, 1, 3, 16, 16),
    ),
    with_timm(
        "gemma3n",
        "Gemma3n",
        {
            "text_config": {
                **GROUPED,
                "intermediate_size": 48,
                "num_hidden_layers": 4,
                "layer_types": TYPED * 2,
                "sliding_window": 4,
                "num_kv_shared_layers": 2,
                "vocab_size_per_layer_input": 60,
                "hidden_size_per_layer_input": 8,
                "altup_num_inputs": 2,
                "laurel_rank": 8,
                "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
            },
            "vision_config": {
                "architecture": "test_resnet",
                "hidden_size": 96,
                "vocab_size": 2,
                "vocab_offset": 60,
            },
            "audio_config": {
                "vocab_size": 2,
                "vocab_offset": 62,
                "input_feat_size": 8,
                "hidden_size": 32,
                "conf_num_attention_heads": 4,
                "conf_num_hidden_layers": 1,
                "sscp_conv_channel_size": [8, 8],
            },
            "vision_soft_tokens_per_image": 4,
            **ID,
            "audio_token_id": 63,
        },
        pixels(4, 1, 3, 64, 64),
    ),
]
