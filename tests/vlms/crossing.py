"""A tiny Mllama, whose text attends to pictures in blocks of its own."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from tests.vlms.sizes import SQUARE, TEXT, WIDTH
from tests.vlms.words import chat, tokenizer

LAYERS = [0, 1]


def mllama() -> tuple[Any, Any]:
    """An Mllama of tiles of pictures, and three blocks of which the second one attends to them."""
    special = [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|python_tag|>",
    ]
    words = tokenizer(
        [*special, "<|finetune_right_pad_id|>", "<|image|>"],
        {"image_token": "<|image|>"},
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    config = hf.MllamaConfig(
        vision_config={
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_global_layers": 2,
            "attention_heads": 4,
            "intermediate_size": 48,
            "image_size": 16,
            "patch_size": 8,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "intermediate_layers_indices": LAYERS,
            "vision_output_dim": WIDTH * (1 + len(LAYERS)),
        },
        text_config={
            **{name: value for name, value in TEXT.items() if name != "head_dim"},
            "vocab_size": len(words),
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "dropout": 0.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "pad_token_id": words.pad_token_id,
        },
        image_token_index=words.image_token_id,
    )
    template = chat(
        "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n",
        "<|image|>",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "{{ bos_token }}",
    )
    processor = hf.MllamaProcessor(
        hf.MllamaImageProcessor(size=SQUARE, max_image_tiles=2), words, chat_template=template
    )
    return opened(hf.MllamaForConditionalGeneration(config)), processor


def opened(module: Any) -> Any:
    """The module with the gates half open that let pictures in, which are shut at the start of training."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(0.5)
    return module
