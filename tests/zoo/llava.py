"""LLaVA and its successors: a picture, or several parts of it, through CLIP or SigLIP."""

from __future__ import annotations

from ecoflap.data.batch import Sample
from tests.zoo.architecture import Draw
from tests.zoo.parts import INDEX, text, vision, vision_language
from tests.zoo.pictures import VIDEO_TOKEN, pixels


def image_sample(draw: Draw) -> Sample:
    """A picture by the name that a model of pictures and videos gives it."""
    sample = pixels(4)(draw)
    return {"pixel_values_images": sample.pop("pixel_values"), **sample}


LLAVA = [
    vision_language(
        "llava",
        "Llava",
        {
            "vision_config": vision("clip_vision_model"),
            "text_config": text("llama"),
            **INDEX,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        },
        pixels(4),
    ),
    vision_language(
        "vipllava",
        "VipLlava",
        {
            "vision_config": vision("clip_vision_model"),
            "text_config": text("llama"),
            **INDEX,
            "vision_feature_layers": [-2, -1],
        },
        pixels(4),
    ),
    vision_language(
        "llava_next",
        "LlavaNext",
        {
            "vision_config": vision("clip_vision_model"),
            "text_config": text("llama"),
            **INDEX,
            "image_grid_pinpoints": [[16, 16]],
            "vision_feature_layer": -1,
        },
        pixels(10, 1, 2, 3, 16, 16, image_sizes=[[16, 16]]),
    ),
    vision_language(
        "llava_onevision",
        "LlavaOnevision",
        {
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "text_config": text("qwen2"),
            **INDEX,
            "image_grid_pinpoints": [[16, 16]],
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        pixels(10, 1, 2, 3, 16, 16, image_sizes=[[16, 16]]),
    ),
    vision_language(
        "llava_next_video",
        "LlavaNextVideo",
        {
            "vision_config": vision("clip_vision_model"),
            "text_config": text("llama"),
            **INDEX,
            "video_token_index": VIDEO_TOKEN,
            "image_grid_pinpoints": [[16, 16]],
            "vision_feature_layer": -1,
        },
        pixels(10, 1, 2, 3, 16, 16, image_sizes=[[16, 16]]),
    ),
    vision_language(
        "video_llava",
        "VideoLlava",
        {
            "vision_config": vision("clip_vision_model"),
            "text_config": text("llama"),
            **INDEX,
            "video_token_index": VIDEO_TOKEN,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "image_seq_length": 4,
        },
        image_sample,
    ),
]
