"""Encoders of pictures, and of pictures and texts side by side."""

from __future__ import annotations

from typing import Any

import torch

from ecoflap.data.batch import Sample
from ecoflap.models.families.clip.clip import DualInterface, dual_loss
from ecoflap.models.families.vision.image_classifier import classification_loss
from tests.zoo.architecture import Architecture, Draw
from tests.zoo.small import HALVES, VISION

CLASSIFIERS = {
    "vit": "ViT",
    "deit": "DeiT",
    "beit": "Beit",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
    "ijepa": "IJepa",
    "data2vec-vision": "Data2VecVision",
    "siglip": "Siglip",
}
DUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": (
        "CLIPModel",
        {"text_config": {**HALVES, "eos_token_id": 62}, "vision_config": VISION, "projection_dim": 16},
    ),
}


def picture_sample(draw: Draw) -> Sample:
    """A picture and its class."""
    return {
        "pixel_values": draw.normal(3, 16, 16),
        "labels": torch.randint(0, 2, (), generator=draw.generator),
    }


def pair_sample(draw: Draw) -> Sample:
    """A picture and a text of one length, so that samples that have each other can share a batch."""
    tokens = torch.cat([draw.tokens(8), torch.tensor([62])])
    return {
        "pixel_values": draw.normal(3, 16, 16),
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
    }


INTERFACE: Any = DualInterface(None, None, 0, False)  # type: ignore[arg-type]
ENCODERS = [
    *(
        Architecture(
            name,
            "encoder",
            f"{model}ForImageClassification",
            classification_loss,
            {"mlp_ratio": 2} if "mlp" in name else {},
            picture_sample,
        )
        for name, model in CLASSIFIERS.items()
        if name != "siglip"
    ),
    *(
        Architecture(name, "encoder", model, dual_loss("contrastive", INTERFACE), settings, pair_sample)
        for name, (model, settings) in DUAL.items()
    ),
]
