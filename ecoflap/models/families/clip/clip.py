"""Models with two towers and one embedding space: CLIP of transformers, and the common code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.classes import Classes
from ecoflap.data.example import Example
from ecoflap.errors import UserError
from ecoflap.models.core.losses import class_loss, contrastive_loss, counting, find_loss
from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.positives import image_text_positives
from ecoflap.models.core.prunable import Loss, PrunableModel
from ecoflap.models.core.text_length import most_tokens
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.clip.options import ClipOptions
from ecoflap.models.loading.loader import Pretrained, prunable

LOSSES = ("contrastive", "classification")
NO_CLASSES = (
    "model.loss=classification needs a calibration set with classes; choose one, or model.loss=contrastive"
)


class DualFeatures:
    """Features of inputs of a model with two towers, by functions of the family.

    Attributes:
        pad_token_id: the token that shorter texts are padded with. Padding follows the end of the text and
            has no effect.
        classes: features of the classes [classes, features], for the classification loss.
    """

    sees = True

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id
        self.classes: Tensor | None = None

    def image_features(self, module: Any, pixels: Tensor) -> Tensor:
        """Normalised features of pixel values, [images, features]."""
        pooled = module.vision_model(pixel_values=pixels).pooler_output
        return normalize(module.visual_projection(pooled), dim=-1)

    def text_features(self, module: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Normalised features of tokens, [texts, features]."""
        with counting(attention_mask):
            pooled = module.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return normalize(module.text_projection(pooled), dim=-1)


class DualInterface(DualFeatures):
    """Pictures and captions of a model with two towers, embedded by functions of the family.

    Attributes:
        longest: most tokens of a text; None for the tokenizer's own limit, if it has one.
    """

    longest: int | None = None

    def __init__(self, pixels: Pixels, tokenizer: Any, pad_token_id: int, classification: bool) -> None:
        super().__init__(pad_token_id)
        self.pixels, self.tokenizer, self.classification = pixels, tokenizer, classification

    def encode(self, example: Example) -> Sample:
        """A picture with its caption, or with its label where the loss is classification.

        Raises:
            UserError: if the loss is classification, and the example has no label.
        """
        if self.classification and example.label is None:
            raise UserError(NO_CLASSES)
        pixels = self.pixels([example.image])[0]
        if self.classification:
            return {"pixel_values": pixels, "labels": torch.tensor(example.label)}
        return {"pixel_values": pixels, **self._tokens([example.caption])[0]}

    def _tokens(self, texts: Sequence[str]) -> list[Sample]:
        """Tokens of each text, truncated to the tower's length."""
        encoded = [
            self.tokenizer(text, return_tensors="pt", truncation=True, max_length=self.longest)
            for text in texts
        ]
        return [{name: inputs[name][0] for name in ("input_ids", "attention_mask")} for inputs in encoded]

    @torch.no_grad()
    def embed_images(self, model: PrunableModel, paths: Sequence[str | None]) -> Tensor:
        """Normalised features, [images, features]."""
        pixels = self.pixels(paths).to(next(model.module.parameters()))
        return self.image_features(model.module, pixels).float().cpu()

    @torch.no_grad()
    def embed_texts(self, model: PrunableModel, texts: Sequence[str]) -> Tensor:
        """Normalised features, [texts, features]."""
        tokens = self._tokens(texts)
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0}
        ids, mask = (
            pad_sequence([row[name] for row in tokens], batch_first=True, padding_value=fill).to(model.device)
            for name, fill in fills.items()
        )
        return self.text_features(model.module, ids, mask).float().cpu()

    def set_classes(self, model: PrunableModel, classes: Classes) -> None:
        """Compute the zero-shot classifier with the dense text tower; pruning does not change it."""
        if self.classification:
            self.classes = class_features(self, model, classes).to(model.device)


def class_features(interface: Any, model: PrunableModel, classes: Classes) -> Tensor:
    """The zero-shot classifier: the mean of each class's normalised prompt features, [classes, features]."""
    rows = [
        interface.embed_texts(model, [template.format(name) for template in classes.templates]).mean(dim=0)
        for name in classes.names
    ]
    return normalize(torch.stack(rows), dim=-1)


def dual_loss(name: str, interface: DualFeatures | None) -> Loss:
    """A loss at the model's own temperature, [batch].

    ``contrastive`` is symmetric over the batch; ``classification`` uses the zero-shot classifier.

    Raises:
        UserError: if there is no such loss.
    """

    def contrastive(module: Any, batch: Batch, copies: int = 1) -> Tensor:
        assert interface is not None
        # Pictures first: a probe of the text tower then finds the vision tower's outputs stored.
        images = interface.image_features(module, batch["pixel_values"].to(next(module.parameters()).dtype))
        texts = interface.text_features(module, batch["input_ids"], batch["attention_mask"])
        return contrastive_loss(
            images, texts, module.logit_scale.exp(), image_text_positives(batch, copies), copies
        )

    def classification(module: Any, batch: Batch, copies: int = 1) -> Tensor:
        assert interface is not None
        if interface.classes is None:
            raise UserError(NO_CLASSES)
        pixels = batch["pixel_values"].to(next(module.parameters()).dtype)
        features = interface.image_features(module, pixels).float()
        return class_loss(module.logit_scale.exp() * features @ interface.classes.t(), batch["labels"])

    return find_loss(name, dict(zip(LOSSES, (contrastive, classification), strict=True)))


@dataclass(frozen=True)
class Clip(ClipOptions, Pretrained):
    """A CLIP."""

    classes = ("CLIPConfig", "CLIPModel", "CLIPProcessor")

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its processor; None if its inputs are ready.

        Raises:
            UserError: if there is no such loss or tower.
        """
        interface: DualFeatures
        config: Any = module.config
        pad = config.text_config.pad_token_id or 0  # the text tower ignores what is padded
        if processor is None:
            interface = DualFeatures(pad)
        else:
            tokenizer = processor.tokenizer
            interface = DualInterface(
                Pixels.of(processor.image_processor),
                tokenizer,
                pad if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                self.loss == "classification",
            )
            limits = (most_tokens(module), tokenizer.model_max_length)
            interface.longest = min(limit for limit in limits if limit is not None)
        return prunable(
            self.name, module, processor, dual_loss(self.loss, interface), selection, self.towers, interface
        )
