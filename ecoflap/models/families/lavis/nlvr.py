"""BLIP-NLVR of salesforce-lavis: is a sentence true of two pictures?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.example import Example
from ecoflap.errors import UserError
from ecoflap.models.core.losses import class_loss
from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.lavis.options import LavisNlvrOptions
from ecoflap.models.families.lavis.parts import LavisPretrained, read_tokenizer, require_lavis
from ecoflap.models.loading.loader import prunable


def truth_logits(module: nn.Module, batch: Batch) -> Tensor:
    """Logits of false and true, [batch, 2], in fp32.

    LAVIS' own forward puts all first pictures before all second ones. Here the two of a sample stay together,
    [batch * 2, ...], so that replicas of a batch stay apart inside the image tower too.
    """
    model: Any = module
    pixels, input_ids = batch["pixel_values"].to(model.cls_head[0].weight.dtype), batch["input_ids"]
    first, second = (
        model.visual_encoder.forward_features(pixels.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
    )
    everything = torch.ones(first.shape[:2], dtype=torch.long, device=first.device)
    states = model.text_encoder(
        input_ids,
        attention_mask=batch["attention_mask"],
        encoder_hidden_states=[first, second],
        encoder_attention_mask=[everything, everything],
        return_dict=True,
    ).last_hidden_state
    logits: Tensor = model.cls_head(states[:, 0])
    return logits.float()


def truth_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of true or false, per sample, [batch]."""
    return class_loss(truth_logits(module, batch), batch["labels"])


class NlvrInterface:
    """Two pictures, a sentence about them, and whether it is true (label 1), through LAVIS' processors."""

    sees = True

    def __init__(self, tokenizer: Any, image_size: int) -> None:
        from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor

        self.tokenizer = tokenizer
        self.pixels, self.caption = Pixels(BlipImageEvalProcessor(image_size)), BlipCaptionProcessor()

    def encode(self, example: Example) -> Sample:
        """Encode one sentence: pixels [2, 3, height, width], tokens and label.

        Raises:
            UserError: if the example has no second picture or no label.
        """
        if example.label is None:
            raise UserError(
                "NLVR needs a label, 0 for false or 1 for true; choose a calibration set of labelled pairs of"
                " pictures"
            )
        batch = self._batch([example])
        return {**{name: tensor[0] for name, tensor in batch.items()}, "labels": torch.tensor(example.label)}

    @torch.no_grad()
    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        """Logits of false and true, [examples, 2]."""
        return truth_logits(
            model.module, {name: tensor.to(model.device) for name, tensor in self._batch(examples).items()}
        ).cpu()

    def _batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        if any(example.image is None or example.second_image is None for example in examples):
            raise UserError(
                "NLVR looks at two pictures at a time, and these examples have fewer; choose data of pairs of"
                " pictures"
            )
        text = self.tokenizer(
            [self.caption(example.text) for example in examples], padding="longest", return_tensors="pt"
        )
        text["input_ids"][:, 0] = self.tokenizer.convert_tokens_to_ids("[ENC]")
        pixels = torch.stack([self.pixels([example.image, example.second_image]) for example in examples])
        return {
            "pixel_values": pixels,
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
        }


@dataclass(frozen=True)
class LavisNlvr(LavisNlvrOptions, LavisPretrained):
    """A BLIP-NLVR."""

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and tokenizer.

        Raises:
            UserError: if LAVIS or the weights are missing, the weights do not fit, or a tower is unknown.
        """
        require_lavis()
        from lavis.models.blip_models.blip_nlvr import BlipNLVR
        from transformers import BertTokenizer

        from ecoflap.models.families.lavis.modules import BareNlvr

        with torch.device("meta"):
            module = BareNlvr(self.architecture)
        if device.type == "meta":
            return prunable(self.name, module, None, truth_loss, selection)
        tokenizer = read_tokenizer(BertTokenizer, self.tokenizer)
        tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
        self.read(module, BlipNLVR, device)
        module.tokenizer = tokenizer
        return prunable(
            self.name,
            module,
            tokenizer,
            truth_loss,
            selection,
            interface=NlvrInterface(tokenizer, self.architecture["image_size"]),
        )
