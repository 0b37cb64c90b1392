"""Vision-language models without a transformer for pictures: codebooks, bare patches, convolutional networks of timm."""

from __future__ import annotations

from typing import Any

import torch

from ecoflap.models.prunable import Sample
from ecoflap.models.vlm import answer_loss
from tests.zoo.architecture import IMAGE_TOKEN, Architecture, Draw
from tests.zoo.parts import ID, INDEX, text, vision_language
from tests.zoo.pictures import VIDEO_TOKEN, behind_picture, pixels
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
    return {**sample, "image_position_ids": places, "mm_token_type_ids": (sample["input_ids"] == IMAGE_TOKEN).long()}


CODEBOOKS = [
    vision_language(
        "chameleon",
        "Chameleon",
        {
            **{name: value for name, value in GROUPED.items() if name != "head_dim"},
            "vocab_size": 72,
            "vq_config": {**AUTOENCODER, "num_embeddings": 4, "resolution": 8},
            "vocabulary_map": {"<image>": IMAGE_TOKEN, **{f"IMGIMG{letter}Z": 64 + number for number, letter in enumerate("ABCD")}},
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
            "vocabulary_map": {"<image>": IMAGE_TOKEN, "<|extra_200|>": 68, **codes("<|visual token {:06d}|>", 64, 4)},
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
]
