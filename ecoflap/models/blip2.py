"""BLIP-2 of transformers, with a T5 or a decoder-only language model; ``blip2_mini`` is the same class, only smaller."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecoflap.models.loading import Selection, check_fits, decoder_only, from_hub, parameters_of, prunable, require_folder, resolve_dtype
from ecoflap.models.losses import next_token_loss, token_loss
from ecoflap.models.prunable import Batch, PrunableModel


def answer_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the answer or caption given image and prompt, per sample, [batch] (the paper's BLIP-2 loss)."""
    logits = module(**batch).logits
    per_sample = next_token_loss if decoder_only(module) else token_loss
    return per_sample(logits, batch["labels"])


@dataclass(frozen=True)
class Blip2:
    """A BLIP-2 from a hub id or a folder.

    Attributes:
        name: for people and result files.
        path: hub id or folder.
        prompt: how a question is put to the model, with one ``{}``.
        dtype: auto (the checkpoint's), float32, float16 or bfloat16.
        revision: hub revision.
        towers: {tower: path of its block list}, where it should not be found from the tree.
        save: write the pruned checkpoint into the run's folder.
    """

    path: str
    name: str = "blip2"
    prompt: str = "Question: {} Short answer:"
    dtype: str = "auto"
    revision: str | None = None
    towers: dict[str, str] | None = None
    save: bool = False

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and processor.

        Raises:
            UserError: nothing loadable there, it doesn't fit, or a tower is unknown.
        """
        from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor

        path, dtype = require_folder(self.path), resolve_dtype(self.dtype)
        config = from_hub(lambda: Blip2Config.from_pretrained(path, revision=self.revision), path)
        check_fits(parameters_of(Blip2ForConditionalGeneration, config), dtype, device)
        module = from_hub(lambda: Blip2ForConditionalGeneration.from_pretrained(path, revision=self.revision, torch_dtype=dtype or "auto"), path).to(
            device
        )
        processor = from_hub(lambda: Blip2Processor.from_pretrained(path, revision=self.revision), path)
        return prunable(self.name, module, processor, answer_loss, selection, self.towers, self.prompt)
