"""The architecture and the processor of ``blip2_mini``: transformers' BLIP-2, shrunk."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
    T5Config,
)

NUM_QUERIES = 8
PAD, EOS, UNKNOWN, IMAGE = 0, 1, 2, 3
SPECIAL_TOKENS = ["<pad>", "</s>", "<unk>", "<image>"]


@dataclass(frozen=True)
class Recipe:
    """Every number that the trained weights depend on."""

    width: int = 32
    mlp: int = 64
    heads: int = 4
    vision_blocks: int = 2
    qformer_blocks: int = 2
    text_blocks: int = 2
    vision_steps: int = 1500
    steps: int = 5000
    batch: int = 128
    learning_rate: float = 3e-3
    warmup: int = 300
    weight_decay: float = 0.01
    seed: int = 0


def words(text: str) -> list[str]:
    """Split a question into the words of the mini vocabulary."""
    return re.findall(r"[a-z]+|\?", text.lower())


def build(recipe: Recipe, vocabulary: int) -> Blip2ForConditionalGeneration:
    """A randomly initialised BLIP-2 with the recipe's sizes.

    ``Blip2VisionConfig.initializer_range`` defaults to 1e-10 and the query, class and position embeddings
    start at zero; a model trained from scratch needs a real spread in all of them or it never learns to look
    at the image.
    """
    size = {
        "hidden_size": recipe.width,
        "intermediate_size": recipe.mlp,
        "num_attention_heads": recipe.heads,
        "initializer_range": 0.06,
    }
    vision = Blip2VisionConfig(**size, num_hidden_layers=recipe.vision_blocks, image_size=64, patch_size=8)
    qformer = Blip2QFormerConfig(
        **size,
        vocab_size=vocabulary,
        num_hidden_layers=recipe.qformer_blocks,
        encoder_hidden_size=recipe.width,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    text = T5Config(
        vocab_size=vocabulary,
        d_model=recipe.width,
        d_kv=recipe.width // recipe.heads,
        d_ff=recipe.mlp,
        num_layers=recipe.text_blocks,
        num_decoder_layers=recipe.text_blocks,
        num_heads=recipe.heads,
        dropout_rate=0.0,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=NUM_QUERIES,
        image_token_index=IMAGE,
    )
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding, std=0.3)
    torch.nn.init.normal_(model.vision_model.embeddings.class_embedding, std=0.3)
    return model


def make_processor(vocabulary: dict[str, int]) -> Blip2Processor:
    """The processor that makes the same inputs as training did: 64 x 64 images in [-1, 1], one token per
    word.
    """
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[UNKNOWN]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[SPECIAL_TOKENS[IMAGE]],
    )
    images = BlipImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Blip2Processor(images, fast, num_query_tokens=NUM_QUERIES)


def save_processor(processor: Blip2Processor, folder: Path) -> None:
    """Write the processor in the layout that transformers 4 and 5 both read; what 5 writes by itself, 4
    refuses.
    """
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text(
        json.dumps({"num_query_tokens": NUM_QUERIES, "processor_class": "Blip2Processor"}, indent=2) + "\n"
    )
    file = folder / "tokenizer_config.json"
    described = json.loads(file.read_text())
    described |= {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "Blip2Processor"}
    described["additional_special_tokens"] = described.pop("extra_special_tokens", [SPECIAL_TOKENS[IMAGE]])
    file.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
