"""The architecture and the processor of ``clip_mini``: transformers' CLIP, shrunk."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

START, END = "<|startoftext|>", "<|endoftext|>"


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


def build(recipe: Recipe, tokenizer: CLIPTokenizerFast) -> CLIPModel:
    """A randomly initialised CLIP with the recipe's sizes; class, position and word embeddings get a wider
    spread than transformers' 0.02.
    """
    size = {
        "hidden_size": recipe.width,
        "intermediate_size": recipe.mlp,
        "num_attention_heads": recipe.heads,
        "projection_dim": recipe.width,
    }
    text = {
        **size,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": recipe.text_blocks,
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **size,
        "num_hidden_layers": recipe.vision_blocks,
        "image_size": 64,
        "patch_size": 8,
        "initializer_range": 0.06,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.width))
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=0.3)
    torch.nn.init.normal_(model.vision_model.embeddings.class_embedding, std=0.3)
    torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.3)
    torch.nn.init.normal_(model.text_model.embeddings.position_embedding.weight, std=0.1)
    return model


def make_processor(captions: list[str]) -> CLIPProcessor:
    """The processor that makes the same inputs as training did: 64 x 64 images in [-1, 1]; CLIP's byte pairs,
    merged into the captions' words.
    """
    images = CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return CLIPProcessor(images, make_tokenizer(captions))


def make_tokenizer(captions: list[str]) -> CLIPTokenizerFast:
    """CLIP's own tokenizer with byte pairs learned from the captions: each of their words is one token, other
    words are spelled.

    The special tokens come first, the end's at 1: an end of 2 is what CLIP's text tower takes for an old
    configuration.
    """
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    pairs.pre_tokenizer = CLIPTokenizerFast().backend_tokenizer.pre_tokenizer
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=[START, END], end_of_word_suffix="</w>", show_progress=False
    )
    pairs.train_from_iterator(sorted(captions), trainer)
    learned = json.loads(pairs.to_str())["model"]
    return CLIPTokenizerFast(
        vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]], model_max_length=32
    )
