"""Models with two towers that also judge a picture and a text jointly, as BLIP and BLIP-2 do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.clip.clip import DualInterface


class PairInterface(DualInterface):
    """Pictures and captions, embedded apart or matched in pairs."""

    longest = 35  # tokens, as BLIP and BLIP-2 are measured

    def __init__(self, pixels: Pixels, tokenizer: Any) -> None:
        super().__init__(pixels, tokenizer, tokenizer.pad_token_id, classification=False)

    @abstractmethod
    def image_states(self, module: Any, pixels: Tensor) -> Tensor:
        """Output of the vision tower, [images, tokens, features]."""

    @abstractmethod
    def match_logits(self, module: Any, input_ids: Tensor, attention_mask: Tensor, states: Tensor) -> Tensor:
        """Logits [pairs, 2] of no match and match.

        Args:
            module: the model.
            input_ids: the text of each pair, [pairs, tokens].
            attention_mask: which tokens are real, [pairs, tokens].
            states: the picture of each pair, [pairs, image tokens, features].
        """

    @torch.no_grad()
    def match(self, model: PrunableModel, images: Sequence[str | None], texts: Sequence[str]) -> Tensor:
        """Logit of a match for each pair, [pairs]."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(model.device)
        pictures = list(dict.fromkeys(images))  # each is encoded once, though it may have many captions
        states = self.image_states(model.module, self.pixels(pictures).to(model.device))
        states = states[[pictures.index(image) for image in images]]
        logits = self.match_logits(model.module, tokens["input_ids"], tokens["attention_mask"], states)
        return logits[:, 1].float().cpu()
