"""BLIP of transformers for retrieval, by contrast of pictures and texts and by matching of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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
from ecoflap.models.families.blip.text import LONGEST, check_encoder_token, image_states
from ecoflap.models.families.clip.clip import DualInterface
from ecoflap.models.loading.loader import Pretrained, prunable

TEMPERATURE = 0.07  # BLIP learns it from here on; the checkpoints of transformers leave it out


def itc_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Symmetric in-batch contrast of the class tokens (ITC), per sample, [batch]."""
    states = image_states(module, batch["pixel_values"])["encoder_hidden_states"]
    return _contrast(module, batch, states, image_text_positives(batch, copies), copies)


def match_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Image-text matching loss (ITM), per sample, [batch]; see ``_match``."""
    states = image_states(module, batch["pixel_values"])
    return _match(module, batch, states, image_text_positives(batch, copies), copies)


def match_and_contrastive_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """The sum of both, as BLIP is trained; the text tower runs alone and with pictures."""
    states, right = image_states(module, batch["pixel_values"]), image_text_positives(batch, copies)
    return _contrast(module, batch, states["encoder_hidden_states"], right, copies) + _match(
        module, batch, states, right, copies
    )


def _contrast(module: Any, batch: Batch, image_states: Tensor, right: Tensor, copies: int) -> Tensor:
    with counting(batch["attention_mask"]):
        texts = module.text_encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    images = normalize(module.vision_proj(image_states[:, 0]), dim=-1)
    texts = normalize(module.text_proj(texts[:, 0]), dim=-1)
    return contrastive_loss(images, texts, 1 / TEMPERATURE, right, copies)


def _match(module: Any, batch: Batch, image: dict[str, Tensor], right: Tensor, copies: int) -> Tensor:
    """Mean of each text's matching loss with its positive, and with the nearest negative sample before it.

    BLIP draws the negative by similarity; a random draw would make the loss jump while weights are probed.
    """
    input_ids, attention_mask = (
        _for_pairs(batch["input_ids"], batch.get("encoder_token")),
        batch["attention_mask"],
    )
    own = _match_logits(module, input_ids, attention_mask, image)

    def with_pictures_of(others: Tensor) -> Tensor:
        return _match_logits(
            module, input_ids, attention_mask, {name: tensor[others] for name, tensor in image.items()}
        )

    return matching_loss(own, nearest_negatives(right, copies), with_pictures_of)


def _for_pairs(input_ids: Tensor, encoder_token: Tensor | None) -> Tensor:
    """Tokens of texts for matching, [texts, tokens], which begin with ``encoder_token`` or [CLS]."""
    return (
        input_ids if encoder_token is None else torch.cat([encoder_token[:, None], input_ids[:, 1:]], dim=1)
    )


def _match_logits(module: Any, input_ids: Tensor, attention_mask: Tensor, image: dict[str, Tensor]) -> Tensor:
    """Logits [pairs, 2] of no match and match."""
    with counting(attention_mask):
        states = module.text_encoder(input_ids=input_ids, attention_mask=attention_mask, **image)[0]
    logits: Tensor = module.itm_head(states[:, 0])
    return logits


LOSSES = {
    "match_and_contrastive": match_and_contrastive_loss,
    "match": match_loss,
    "contrastive": itc_loss,
}


class RetrievalInterface(DualInterface):
    """Pictures and captions, embedded apart or matched in pairs.

    A matched caption begins with ``encoder_token``; None keeps the tokenizer's [CLS].
    """

    longest = LONGEST

    def __init__(self, pixels: Pixels, tokenizer: Any, encoder_token: int | None) -> None:
        super().__init__(pixels, tokenizer, tokenizer.pad_token_id, False)
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
        return normalize(
            module.vision_proj(image_states(module, pixels)["encoder_hidden_states"][:, 0]), dim=-1
        )

    @override
    def text_features(self, module: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = module.text_encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return normalize(module.text_proj(states[:, 0]), dim=-1)

    @torch.no_grad()
    def match(self, model: PrunableModel, images: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Logit of a match for each pair, [pairs]."""
        module: Any = model.module
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(model.device)
        first = None
        if self.encoder_token is not None:
            first = torch.full((len(texts),), self.encoder_token, device=model.device)
        pictures = list(dict.fromkeys(images))  # each is encoded once, though it may have many captions
        states = image_states(module, self.pixels(pictures).to(model.device))
        states = {
            name: tensor[[pictures.index(image) for image in images]] for name, tensor in states.items()
        }
        return (
            _match_logits(module, _for_pairs(tokens["input_ids"], first), tokens["attention_mask"], states)[
                :, 1
            ]
            .float()
            .cpu()
        )


@dataclass(frozen=True)
class BlipRetrieval(BlipRetrievalOptions, Pretrained):
    """BLIP for retrieval of pictures and texts."""

    classes: ClassVar[tuple[str, str, str]] = ("BlipConfig", "BlipForImageTextRetrieval", "BlipProcessor")

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
            interface = RetrievalInterface(
                Pixels.of(processor.image_processor), processor.tokenizer, self.encoder_token
            )
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
