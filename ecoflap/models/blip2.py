"""BLIP-2 of transformers, with a T5 or a decoder-only language model; ``blip2_mini`` is the same class, only smaller."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.loading import Pretrained, Selection, decoder_only, prunable
from ecoflap.models.losses import next_token_loss, token_loss
from ecoflap.models.prunable import Batch, PrunableModel


def answer_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the answer or caption given image and prompt, per sample, [batch] (the paper's BLIP-2 loss)."""
    logits = module(**batch).logits
    per_sample = next_token_loss if decoder_only(module) else token_loss
    return per_sample(logits, batch["labels"])


@dataclass(frozen=True)
class Blip2(Pretrained):
    """A BLIP-2; see ``Pretrained`` for its other options.

    Attributes:
        prompt: how a question is put to the model, with one ``{}``.
    """

    name: str = "blip2"
    prompt: str = "Question: {} Short answer:"

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1 or self.prompt.replace("{}", "").count("{") + self.prompt.replace("{}", "").count("}"):
            raise UserError(f"model.prompt={self.prompt!r} must hold {{}} once, where the question goes")

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and processor.

        Raises:
            UserError: nothing loadable there, it doesn't fit, or a tower is unknown.
        """
        from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor

        module, processor = self.read(Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, device)
        return prunable(self.name, module, processor, answer_loss, selection, self.towers, self.prompt)
