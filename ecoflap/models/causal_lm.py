"""Decoder language models of transformers, of any family: LLaMA, Qwen, Mistral, OPT, GPT-2, ..."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecoflap.models.loading import Selection, check_fits, from_hub, parameters_of, prunable, require_folder, resolve_dtype
from ecoflap.models.losses import next_token_loss
from ecoflap.models.prunable import Batch, PrunableModel


def language_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Next-token cross-entropy of each row, [batch]."""
    return next_token_loss(module(**batch, use_cache=False).logits, batch["input_ids"])


@dataclass(frozen=True)
class CausalLM:
    """A decoder LM from a hub id or a folder that ``save_pretrained`` wrote.

    Attributes:
        name: for people and result files.
        path: hub id or folder.
        dtype: auto (the checkpoint's), float32, float16 or bfloat16.
        revision: hub revision.
        towers: {tower: path of its block list}, where it should not be found from the tree.
        save: write the pruned checkpoint into the run's folder.
    """

    path: str
    name: str = "causal_lm"
    dtype: str = "auto"
    revision: str | None = None
    towers: dict[str, str] | None = None
    save: bool = False

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and tokenizer.

        Raises:
            UserError: nothing loadable there, it doesn't fit, or a tower is unknown.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        path, dtype = require_folder(self.path), resolve_dtype(self.dtype)
        config = from_hub(lambda: AutoConfig.from_pretrained(path, revision=self.revision), path)
        check_fits(from_hub(lambda: parameters_of(AutoModelForCausalLM, config), path), dtype, device)
        module = from_hub(lambda: AutoModelForCausalLM.from_pretrained(path, revision=self.revision, torch_dtype=dtype or "auto"), path).to(device)
        tokenizer = from_hub(lambda: AutoTokenizer.from_pretrained(path, revision=self.revision), path)
        return prunable(self.name, module, tokenizer, language_loss, selection, self.towers)
