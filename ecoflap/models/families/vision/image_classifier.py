"""Image classifiers of transformers: ViT, DeiT, BEiT, DINOv2, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.classes import Classes
from ecoflap.data.example import Example
from ecoflap.errors import UserError, nearest
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
        self.index_of: dict[int, int] = {}

    def set_classes(self, model: PrunableModel, classes: Classes) -> None:
        """Find the data set's classes among the model's, by name.

        Raises:
            UserError: if the model lacks one of them.
        """
        strange = [name for name in classes.names if name not in self.names]
        if strange:
            raise UserError(
                f"{model.name} has no class {strange[0]!r} (nearest: {nearest(strange[0], self.names)});"
                " choose a calibration set of its own classes"
            )
        self.index_of = {label: self.names.index(name) for label, name in enumerate(classes.names)}

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
        label = self.index_of.get(example.label, example.label)
        if self.names and not 0 <= label < len(self.names):
            raise UserError(
                f"label {label} of a picture: the model has {len(self.names)} classes, numbered from 0; give"
                " one of them"
            )
        return {"pixel_values": self.pixels([example.image])[0], "labels": torch.tensor(label)}

    @torch.no_grad()
    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        """Logits, [examples, classes]."""
        pixels = self.pixels([example.image for example in examples])
        return model.module(pixel_values=pixels.to(next(model.module.parameters()))).logits.float().cpu()


@dataclass(frozen=True)
class ImageClassifier(ImageClassifierOptions, Pretrained):
    """An image classifier."""

    classes = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor")

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its image processor, which may be None.

        Raises:
            UserError: if there is no such loss or tower.
        """
        loss = find_loss(self.loss, {"classification": classification_loss})
        interface: Any = None
        if processor is not None:
            names = getattr(getattr(module, "config", None), "id2label", {})
            interface = ClassifierInterface(Pixels.of(processor), [names[index] for index in sorted(names)])
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
