"""Image classifiers of transformers: ViT, DeiT, BEiT, DINOv2, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.example import Example
from ecoflap.errors import UserError
from ecoflap.models.core.losses import class_loss, find_loss
from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.vision.options import ImageClassifierOptions
from ecoflap.models.loading.loader import Pretrained, prunable


def classification_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the right class, per sample, [batch]."""
    pixels = batch["pixel_values"].to(next(module.parameters()).dtype)
    return class_loss(module(pixel_values=pixels).logits, batch["labels"])


class ClassifierInterface:
    """Pictures and their classes."""

    sees = True

    def __init__(self, pixels: Pixels, names: Sequence[str]) -> None:
        """``names``: of the classes, in the order of the logits."""
        self.pixels, self.names = pixels, list(names)

    def encode(self, example: Example) -> Sample:
        """Encode a picture and its class.

        Raises:
            UserError: if the example has no class, or one that the model lacks.
        """
        if example.label is None:
            raise UserError(
                "a classifier is scored on labelled pictures, and these have no label; choose another"
                " calibration set"
            )
        if self.names and not 0 <= example.label < len(self.names):
            raise UserError(
                f"label {example.label} of a picture: the model has {len(self.names)} classes, numbered from"
                " 0; give one of them"
            )
        return {"pixel_values": self.pixels([example.image])[0], "labels": torch.tensor(example.label)}

    @torch.no_grad()
    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        """Logits, [examples, classes]."""
        pixels = self.pixels([example.image for example in examples])
        return model.module(pixel_values=pixels.to(next(model.module.parameters()))).logits.float().cpu()


def require_pixels_alone(name: str, image_processor: Any) -> None:
    """Refuse a model that reads more of a picture than its pixels, judging by what its processor makes.

    Raises:
        UserError: if it does, as Siglip2 reads the shape of a picture, or ImageGPT its colours as tokens.
    """
    from PIL import Image

    made = sorted(image_processor(images=Image.new("RGB", (64, 64)), return_tensors="pt"))
    if made != ["pixel_values"]:
        raise UserError(
            f"{name}: the image processor makes {', '.join(made)} of a picture, and a classifier is given"
            " pixel_values alone; choose another model"
        )


@dataclass(frozen=True)
class ImageClassifier(ImageClassifierOptions, Pretrained):
    """An image classifier."""

    classes = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor")

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its image processor, which may be None.

        Raises:
            UserError: if there is no such loss or tower, or the model reads more than pixels.
        """
        loss = find_loss(self.loss, {"classification": classification_loss})
        interface: Any = None
        if processor is not None:
            require_pixels_alone(self.name, processor)
            names = getattr(getattr(module, "config", None), "id2label", {})
            interface = ClassifierInterface(Pixels.of(processor), [names[index] for index in sorted(names)])
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
