"""BLIP of transformers for retrieval, by contrast of pictures and texts and by matching of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.example import Example
from ecoflap.models.core.losses import contrastive_loss, counting, find_loss, matching_loss
from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.positives import image_text_positives, nearest_negatives
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip.options import BlipRetrievalOptions
from ecoflap.models.families.blip.text import check_encoder_token, cross_attended, image_states
from ecoflap.models.families.clip.pairs import PairInterface
from ecoflap.models.loading.loader import Pretrained, prunable

TEMPERATURE = 0.07  # BLIP learns it from here on; the checkpoints of transformers leave it out


def itc_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Symmetric in-batch contrast of the class tokens (ITC), per sample, [batch]."""
    states = image_states(module, batch["pixel_values"])
    return _contrast(module, batch, states, image_text_positives(batch, copies), copies)


def match_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Image-text matching loss (ITM), per sample, [batch]."""
    states = image_states(module, batch["pixel_values"])
    return _match(module, batch, states, image_text_positives(batch, copies), copies)


def match_and_contrastive_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """The sum of both, as BLIP is trained; the text tower runs alone and with pictures."""
    states, positives = image_states(module, batch["pixel_values"]), image_text_positives(batch, copies)
    contrast = _contrast(module, batch, states, positives, copies)
    return contrast + _match(module, batch, states, positives, copies)


def _contrast(module: Any, batch: Batch, states: Tensor, positives: Tensor, copies: int) -> Tensor:
    with counting(batch["attention_mask"]):
        texts = module.text_encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    images = normalize(module.vision_proj(states[:, 0]), dim=-1)
    texts = normalize(module.text_proj(texts[:, 0]), dim=-1)
    return contrastive_loss(images, texts, 1 / TEMPERATURE, positives, copies)


def _match(module: Any, batch: Batch, states: Tensor, positives: Tensor, copies: int) -> Tensor:
    input_ids = _for_pairs(batch["input_ids"], batch.get("encoder_token"))
    logits = partial(_match_logits, module, input_ids, batch["attention_mask"])
    return matching_loss(logits, states, nearest_negatives(positives, copies))


def _for_pairs(input_ids: Tensor, encoder_token: Tensor | None) -> Tensor:
    """Tokens of texts for matching, [texts, tokens], which begin with ``encoder_token`` or [CLS]."""
    if encoder_token is None:
        return input_ids
    return torch.cat([encoder_token[:, None], input_ids[:, 1:]], dim=1)


def _match_logits(module: Any, input_ids: Tensor, attention_mask: Tensor, states: Tensor) -> Tensor:
    """Logits [pairs, 2] of no match and match."""
    with counting(attention_mask):
        output = module.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, **cross_attended(states)
        )[0]
    logits: Tensor = module.itm_head(output[:, 0])
    return logits


LOSSES = {
    "match_and_contrastive": match_and_contrastive_loss,
    "match": match_loss,
    "contrastive": itc_loss,
}


class RetrievalInterface(PairInterface):
    """Pictures and captions, embedded apart or matched in pairs.

    A matched caption begins with ``encoder_token``; None keeps the tokenizer's [CLS].
    """

    def __init__(self, pixels: Pixels, tokenizer: Any, encoder_token: int | None) -> None:
        super().__init__(pixels, tokenizer)
        self.encoder_token = encoder_token

    @override
    def encode(self, example: Example) -> Sample:
        """Encode a picture with its caption, and the first token of the caption in matching."""
        sample = super().encode(example)
        if self.encoder_token is None:
            return sample
        return {**sample, "encoder_token": torch.tensor(self.encoder_token)}

    @override
    def image_features(self, module: Any, pixels: Tensor) -> Tensor:
        return normalize(module.vision_proj(image_states(module, pixels)[:, 0]), dim=-1)

    @override
    def text_features(self, module: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = module.text_encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return normalize(module.text_proj(states[:, 0]), dim=-1)

    @override
    def image_states(self, module: Any, pixels: Tensor) -> Tensor:
        return image_states(module, pixels)

    @override
    def match_logits(self, module: Any, input_ids: Tensor, attention_mask: Tensor, states: Tensor) -> Tensor:
        first = None
        if self.encoder_token is not None:
            first = input_ids.new_full((len(input_ids),), self.encoder_token)
        return _match_logits(module, _for_pairs(input_ids, first), attention_mask, states)


@dataclass(frozen=True)
class BlipRetrieval(BlipRetrievalOptions, Pretrained):
    """BLIP for retrieval of pictures and texts."""

    classes = ("BlipConfig", "BlipForImageTextRetrieval", "BlipProcessor")

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its processor, which may be None.

        Raises:
            UserError: if there is no such loss or tower.
        """
        loss = find_loss(self.loss, LOSSES)
        check_encoder_token(self.encoder_token, module)
        interface = None
        if processor is not None:
            pixels = Pixels.of(processor.image_processor)
            interface = RetrievalInterface(pixels, processor.tokenizer, self.encoder_token)
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
