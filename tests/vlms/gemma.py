"""A tiny Gemma 3."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.vlms.sizes import SQUARE, TEXT, VISION
from tests.vlms.words import chat, tokenizer


def gemma3() -> tuple[Any, Any]:
    """A Gemma 3 of a SigLIP and blocks that attend to a window or to everything."""
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    words = tokenizer(
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", *named.values()],
        named,
        bos_token="<bos>",
        eos_token="<eos>",
    )
    words._tokenizer.post_processor = beginning("<bos>", words.bos_token_id)
    config = hf.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        text_config={
            "model_type": "gemma3_text",
            **TEXT,
            "vocab_size": len(words),
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16,
        },
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        mm_tokens_per_image=4,
    )
    role = "{{ 'model' if message['role'] == 'assistant' else message['role'] }}"
    template = chat(
        f"<start_of_turn>{role}\n",
        "<start_of_image>",
        "<end_of_turn>\n",
        "<start_of_turn>model\n",
        "{{ bos_token }}",
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=SQUARE), words, image_seq_length=4, chat_template=template
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def beginning(token: str, index: int) -> Any:
    """What makes a tokenizer begin each text with a token."""
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, index)]
    )
