"""Tiny models of the line from Qwen3-VL to Qwen3.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

from tests.vlms.sizes import TEXT, WIDTH
from tests.vlms.words import IM, chatml, tokenizer

PATCHES = {
    "depth": 2,
    "num_heads": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "out_hidden_size": WIDTH,
    "num_position_embeddings": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSTACK = {"depth": 3, "deepstack_visual_indexes": [0, 1]}
PICTURE = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
THINKING = (
    "<think>\n{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}"
)


def qwen_tokens(words: Any) -> dict[str, int]:
    """The ids of the tokens around and in the place of pictures."""
    names = ("vision_start", "vision_end", "image", "video")
    return {
        f"{name}_token_id": words.convert_tokens_to_ids(token)
        for name, token in zip(names, PICTURE, strict=True)
    }


def qwen_processor(words: Any, template: str) -> Any:
    """The processor of Qwen3-VL and Qwen3.5, for pictures of 16 x 16 patches at most."""
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"shortest_edge": 64, "longest_edge": 1024}
    return hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(**sizes, size=limits),
        words,
        hf.Qwen3VLVideoProcessor(**sizes, size=limits),
        chat_template=template,
    )


def qwen(
    kind: str, text: dict[str, Any], vision: dict[str, Any], asks: str = ""
) -> Callable[[], tuple[Any, Any]]:
    """A model of the line from Qwen3-VL to Qwen3.5.

    Args:
        kind: how transformers' classes are called.
        text: settings of the language model.
        vision: settings of the image tower.
        asks: what the chat template writes behind the opening of the answer.
    """

    def made() -> tuple[Any, Any]:
        special = ["<|endoftext|>", *IM, *PICTURE, "<think>", "</think>"]
        words = tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        config = getattr(hf, f"{kind}Config")(
            text_config={**TEXT, "vocab_size": len(words), **text},
            vision_config={**PATCHES, **vision},
            **qwen_tokens(words),
        )
        template = chatml("<|vision_start|><|image_pad|><|vision_end|>", asks)
        return getattr(hf, f"{kind}ForConditionalGeneration")(config), qwen_processor(words, template)

    return made
