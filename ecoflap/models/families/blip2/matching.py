"""BLIP-2 of transformers for retrieval; its vision tower may come from a pruned generative BLIP-2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from ecoflap.data.batch import Batch
from ecoflap.models.core.losses import contrastive_loss, counting, find_loss, matching_loss
from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.positives import image_text_positives, nearest_negatives
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip.text import cross_attended
from ecoflap.models.families.blip2.options import Blip2ItmOptions
from ecoflap.models.families.blip2.tower_transfer import transfer
from ecoflap.models.families.clip.pairs import PairInterface
from ecoflap.models.loading.loader import Pretrained, prunable
from ecoflap.models.loading.modes import require_loaded

TEMPERATURE = 0.07  # BLIP-2 learns it from here on; the checkpoints of transformers leave it out


def itc_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Symmetric in-batch contrastive loss (ITC) with each picture's best query for a text, [batch]."""
    queries = _query_features(module, _image_states(module, batch["pixel_values"]))
    texts = _text_features(module, batch["input_ids"], batch["attention_mask"])
    return _contrast(queries, texts, image_text_positives(batch, copies), copies)


def match_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Image-text matching loss (ITM), per sample, [batch]."""
    states = _image_states(module, batch["pixel_values"])
    return _match(module, batch, states, image_text_positives(batch, copies), copies)


def match_and_contrastive_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """The sum of both; the vision tower runs once."""
    states, positives = _image_states(module, batch["pixel_values"]), image_text_positives(batch, copies)
    texts = _text_features(module, batch["input_ids"], batch["attention_mask"])
    contrast = _contrast(_query_features(module, states), texts, positives, copies)
    return contrast + _match(module, batch, states, positives, copies)


def _contrast(queries: Tensor, texts: Tensor, positives: Tensor, copies: int) -> Tensor:
    """``contrastive_loss`` with the best of several queries [batch, queries, features] chosen per text."""
    one, other = queries.unflatten(0, (copies, -1)), texts.unflatten(0, (copies, -1))
    best = torch.einsum("cnqf,cmf->cnmq", one, other).max(dim=-1).values  # [copies, images, texts]
    identity = torch.eye(best.shape[1], device=best.device, dtype=best.dtype).expand(copies, -1, -1)
    return contrastive_loss(best.flatten(0, 1), identity.flatten(0, 1), 1 / TEMPERATURE, positives, copies)


def _match(module: Any, batch: Batch, states: Tensor, positives: Tensor, copies: int) -> Tensor:
    logits = partial(_match_logits, module, batch["input_ids"], batch["attention_mask"])
    return matching_loss(logits, states, nearest_negatives(positives, copies))


def _image_states(module: Any, pixels: Tensor) -> Tensor:
    """Output of the vision tower, [images, tokens, features]."""
    states: Tensor = module.vision_model(
        pixel_values=pixels.to(next(module.vision_model.parameters()).dtype)
    )[0]
    return states


def _query_features(module: Any, states: Tensor) -> Tensor:
    """Normalised features of the queries, [images, queries, features]."""
    queries = module.query_tokens.expand(len(states), -1, -1)
    output = module.qformer(query_embeds=queries, **cross_attended(states)).last_hidden_state
    return normalize(module.vision_projection(output.to(module.vision_projection.weight.dtype)), dim=-1)


def _text_features(module: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Normalised features of texts that the Q-Former reads alone, [texts, features]."""
    embedded = module.embeddings(input_ids=input_ids)
    with counting(attention_mask):
        output = module.qformer(
            query_embeds=embedded, query_length=0, attention_mask=attention_mask
        ).last_hidden_state
    return normalize(module.text_projection(output[:, 0].to(module.text_projection.weight.dtype)), dim=-1)


def _match_logits(module: Any, input_ids: Tensor, attention_mask: Tensor, states: Tensor) -> Tensor:
    """Logits [pairs, 2] of no match and match, means over the queries."""
    queries = module.query_tokens.expand(len(states), -1, -1)
    count = queries.shape[1]
    # Statistics tell queries from text by their number, so texts of the same length get one token of padding.
    if input_ids.shape[1] == count:
        input_ids, attention_mask = (
            torch.nn.functional.pad(tensor, (0, 1)) for tensor in (input_ids, attention_mask)
        )
    mask = torch.cat([attention_mask.new_ones(len(states), count), attention_mask], dim=1)
    embedded = module.embeddings(input_ids=input_ids, query_embeds=queries)
    with counting(mask, attention_mask):
        output = module.qformer(
            query_embeds=embedded, query_length=count, attention_mask=mask, **cross_attended(states)
        ).last_hidden_state
    logits: Tensor = module.itm_head(output[:, :count].to(module.itm_head.weight.dtype)).mean(dim=1)
    return logits


class ItmInterface(PairInterface):
    """Pictures and captions, embedded apart or matched in pairs."""

    @override
    def image_features(self, module: Any, pixels: Tensor) -> Tensor:
        """Normalised features of each query, [images, queries, features]."""
        return _query_features(module, _image_states(module, pixels))

    @override
    def text_features(self, module: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return _text_features(module, input_ids, attention_mask)

    @override
    def image_states(self, module: Any, pixels: Tensor) -> Tensor:
        return _image_states(module, pixels)

    @override
    def match_logits(self, module: Any, input_ids: Tensor, attention_mask: Tensor, states: Tensor) -> Tensor:
        """Logits [pairs, 2] of no match and match, means over the queries."""
        return _match_logits(module, input_ids, attention_mask, states)


LOSSES = {"match_and_contrastive": match_and_contrastive_loss, "match": match_loss, "contrastive": itc_loss}


@dataclass(frozen=True)
class Blip2Itm(Blip2ItmOptions, Pretrained):
    """BLIP-2's first stage for retrieval: vision tower and Q-Former."""

    classes = ("Blip2Config", "Blip2ForImageTextRetrieval", "Blip2Processor")

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its processor, which may be None.

        Raises:
            UserError: if there is no such loss or tower, or the other vision tower doesn't fit.
        """
        loss = find_loss(self.loss, LOSSES)
        require_loaded(self, "vision_from")
        if self.vision_from is not None and not next(module.parameters()).is_meta:
            transfer(module, self.vision_from, "vision_model", "model.vision_from")
        interface = None
        if processor is not None:
            interface = ItmInterface(Pixels.of(processor.image_processor), processor.tokenizer)
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
