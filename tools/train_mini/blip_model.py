"""The architecture and the processor of ``blip_vqa_mini``, ``blip_caption_mini`` and ``blip_retrieval_mini``:
transformers' BLIP, shrunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipImageProcessor,
    BlipPreTrainedModel,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

PAD, END = 0, 3
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class Recipe:
    """Every number that the trained weights depend on."""

    width: int = 48
    mlp: int = 96
    heads: int = 4
    vision_blocks: int = 3
    text_blocks: int = 2
    vision_steps: int = 1000
    steps: int = 1000
    batch: int = 32
    learning_rate: float = 3e-3
    warmup: int = 150
    weight_decay: float = 0.01
    seed: int = 0


def build(kind: type[BlipPreTrainedModel], recipe: Recipe, words: int) -> BlipPreTrainedModel:
    """A randomly initialised BLIP of one kind, with the recipe's sizes and a tokenizer of so many words.

    As in the published BLIPs, the token that decoders start from comes after the tokenizer's last.
    ``BlipVisionConfig.initializer_range`` defaults to 1e-10; a model trained from scratch needs a real
    spread, in the class and position embeddings too.
    """
    size = {
        "hidden_size": recipe.width,
        "intermediate_size": recipe.mlp,
        "num_attention_heads": recipe.heads,
        "initializer_range": 0.06,
    }
    vision = BlipVisionConfig(**size, num_hidden_layers=recipe.vision_blocks, image_size=64, patch_size=8)
    text = BlipTextConfig(
        **size,
        vocab_size=words + 1,
        encoder_hidden_size=recipe.width,
        num_hidden_layers=recipe.text_blocks,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=words,
        eos_token_id=END,
        sep_token_id=END,
    )
    config = BlipConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_text_hidden_size=recipe.width,
        initializer_range=0.06,
    )
    model = kind(config)
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding, std=0.3)
    torch.nn.init.normal_(model.vision_model.embeddings.class_embedding, std=0.3)
    return model


def make_processor(texts: Iterable[str]) -> BlipProcessor:
    """The processor that makes the same inputs as training did: 64 x 64 images in [-1, 1]; ``[CLS]``, one
    token per word of the texts, ``[SEP]``.
    """
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(SPECIAL_TOKENS + words)})
    images = BlipImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return BlipProcessor(images, tokenizer)
