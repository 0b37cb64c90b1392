"""The architecture and the image processor of ``vit_mini``: transformers' ViT with a classifier, shrunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from tools.train_mini.pictures import CLASSES


@dataclass(frozen=True)
class Recipe:
    """Every number that the trained weights depend on."""

    width: int = 48
    mlp: int = 96
    heads: int = 4
    blocks: int = 4
    vision_steps: int = 1000
    steps: int = 1000
    batch: int = 32
    learning_rate: float = 3e-3
    warmup: int = 150
    weight_decay: float = 0.01
    seed: int = 0


def build(recipe: Recipe) -> ViTForImageClassification:
    """A randomly initialised ViT with the recipe's sizes.

    The initializer range and the spread of class token and positions are wider than transformers' defaults,
    which suit wide models.
    """
    config = ViTConfig(
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        initializer_range=0.06,
        image_size=64,
        patch_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    model = ViTForImageClassification(config)
    torch.nn.init.normal_(model.vit.embeddings.position_embeddings, std=0.3)
    torch.nn.init.normal_(model.vit.embeddings.cls_token, std=0.3)
    return model


def make_processor() -> ViTImageProcessor:
    """The processor that makes the same inputs as training did: 64 x 64 images in [-1, 1]."""
    return ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
