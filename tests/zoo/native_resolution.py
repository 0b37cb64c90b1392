"""Vision-language models that read a row of patches on a grid, beside the lines of Qwen-VL and GLM-V."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ecoflap.data.batch import Sample
from tests.zoo.architecture import IMAGE_TOKEN, Draw, MakeSample
from tests.zoo.parts import DEEPSTACK, FEATURES, ID, PATCHED, ROPE, TOKENS, TYPES, glm, text, vision_language
from tests.zoo.pictures import VIDEO_TOKEN, VISION_END, VISION_START, behind_picture, patches
from tests.zoo.small import GROUPED

VIDEO = {**ID, "video_token_id": VIDEO_TOKEN}
WINDOWS = ["window_attention", "full_attention"]


def grid_sample(count: int, *shape: int, types: bool = False, end: Sequence[int] = ()) -> MakeSample:
    """A grid of 4 x 4 patches, each of a shape, that takes ``count`` tokens before those of its end."""

    def sample(draw: Draw) -> Sample:
        result = behind_picture(draw, count, torch.tensor([VISION_START]), end=end)
        result |= {"pixel_values": draw.normal(16, *shape), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        return (
            {**result, "mm_token_type_ids": (result["input_ids"] == IMAGE_TOKEN).long()} if types else result
        )

    return sample


def row_vision(**more: Any) -> dict[str, Any]:
    """The config of an image tower that reads patches of 4 x 4 pixels."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 4,
        **more,
    }


NATIVE_RESOLUTION = [
    vision_language(
        "glmga",
        "Glm46V",
        {
            "text_config": {"model_type": "glm4v_text", **glm()["text_config"]},
            "vision_config": {"model_type": "glm4v_vision", **glm()["vision_config"]},
            **VIDEO,
        },
        patches(FEATURES),
    ),
    vision_language(
        "cosmos3_omni",
        "Cosmos3Omni",
        {
            "text_config": {**GROUPED, "num_hidden_layers": 3, "rope_parameters": ROPE},
            **TOKENS,
            "vision_config": DEEPSTACK,
        },
        patches(FEATURES),
    ),
    vision_language(
        "cosmos3_edge",
        "Cosmos3Edge",
        {
            "text_config": {**GROUPED, "rope_parameters": ROPE},
            **TOKENS,
            "vision_config": row_vision(num_patches=16, spatial_merge_size=2),
            "projector_hidden_size": 48,
        },
        patches(48),
    ),
    vision_language(
        "hyperclovax_vision_v2",
        "HyperCLOVAXVisionV2",
        {
            "text_config": text("hyperclovax"),
            "vision_config": {
                "model_type": "qwen2_5_vl_vision",
                **PATCHED,
                "fullatt_block_indexes": [1],
                "window_size": 16,
            },
            **VIDEO,
        },
        patches(FEATURES, types=False),
    ),
    vision_language(
        "hunyuan_vl",
        "HunYuanVL",
        {
            "text_config": {**GROUPED, "rope_parameters": {**ROPE, "mrope_section": [1, 1, 1, 1]}},
            "vision_config": row_vision(
                out_hidden_size=32,
                text_hidden_size=32,
                num_key_value_heads=4,
                img_max_token_num=16,
                max_image_size=32,
                min_image_size=16,
            ),
            **ID,
        },
        grid_sample(8, 48, types=True),
    ),
    vision_language(
        "lfm3_vl",
        "Lfm3Vl",
        {
            "vision_config": row_vision(num_key_value_heads=2, layer_types=["conv", "full_attention"]),
            "text_config": {
                **GROUPED,
                "num_hidden_layers": 3,
                "layer_types": ["conv", "sliding_attention", "full_attention"],
                "conv_L_cache": 3,
                "sliding_window": 4,
            },
            **TOKENS,
            "projector_hidden_size": 48,
        },
        grid_sample(4, FEATURES),
    ),
    vision_language(
        "llava_onevision1_5",
        "LlavaOnevision15",
        {
            "text_config": text("qwen3"),
            "vision_config": {
                name: value for name, value in PATCHED.items() if name != "temporal_patch_size"
            },
            **TOKENS,
        },
        patches(48),
    ),
    vision_language(
        "ovis2_5",
        "Ovis2_5",
        {
            "text_config": text("qwen3"),
            "vision_config": row_vision(
                image_size=16,
                window_size=8,
                layer_types=["full_attention", "window_attention"],
                vocab_size=64,
                max_position_embeddings=16,
            ),
            **VIDEO,
            "image_start_token_id": VISION_START,
            "image_end_token_id": VISION_END,
            "video_start_token_id": 58,
            "video_end_token_id": 59,
        },
        grid_sample(4, 48, types=True, end=[VISION_END]),
    ),
    vision_language(
        "muse_glimmer",
        "MuseGlimmer",
        {
            "text_config": {**GROUPED, **TYPES},
            "vision_config": row_vision(
                pos_emb_height=4, pos_emb_width=4, max_position_embeddings=16, layer_types=WINDOWS
            ),
            **VIDEO,
            "out_hidden_size": 128,
            "projector_hidden_size": 48,
        },
        grid_sample(4, FEATURES),
    ),
]
