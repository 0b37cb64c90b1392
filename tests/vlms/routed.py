"""A tiny ERNIE 4.5 VL, which has experts for text and experts for pictures."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.vlms.qwen import PATCHES
from tests.vlms.sizes import ROPE, TEXT
from tests.vlms.words import chat, tokenizer

NAMED = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}


def ernie4_5_vl_moe() -> tuple[Any, Any]:
    """An ERNIE of a vision transformer and blocks of which the second one routes."""
    words = tokenizer(list(NAMED.values()), NAMED)
    vision = {name: value for name, value in PATCHES.items() if name != "temporal_patch_size"}
    config = hf.Ernie4_5_VLMoeConfig(
        vision_config={**vision, "temporal_merge_size": 2},
        text_config={
            **TEXT,
            "vocab_size": len(words),
            "rope_parameters": ROPE,
            "moe_intermediate_size": [24, 24],
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "mlp_layer_types": ["dense", "sparse"],
        },
        **{f"{name}_id": words.convert_tokens_to_ids(token) for name, token in NAMED.items()},
    )
    sizes = {"patch_size": 4, "merge_size": 2}
    limits = {"shortest_edge": 64, "longest_edge": 1024}
    template = chat(
        "{{ message['role'] | capitalize }}: ",
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        "{{ '</s>' if message['role'] == 'assistant' else '' }}\n",
        "Assistant:",
        "<s>",
    )
    processor = hf.Ernie4_5_VLMoeProcessor(
        hf.Ernie4_5_VLMoeImageProcessor(**sizes, size=limits),
        words,
        hf.Ernie4_5_VLMoeVideoProcessor(**sizes, size=limits, draw_on_frames=False),
        chat_template=template,
    )
    return hf.Ernie4_5_VLMoeForConditionalGeneration(config), processor
