"""Decoder language models of transformers, of any family: LLaMA, Qwen, Mistral, OPT, GPT-2, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from ecoflap.data.batch import Batch
from ecoflap.models.core.causal import require_causal
from ecoflap.models.core.losses import IGNORED, find_loss, next_token_loss
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.interface import LanguageInterface
from ecoflap.models.families.language.options import CausalLMOptions
from ecoflap.models.loading.loader import Pretrained, prunable


def language_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Next-token cross-entropy of each row, [batch]: of its ``labels`` if it has some, else of all tokens.

    Rows with an ``attention_mask`` are padded on the right.

    Raises:
        UserError: if the model reads the tokens that it should predict.
    """
    require_causal(module)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch["labels"] if "labels" in batch else batch["input_ids"]
    if "attention_mask" in batch:
        labels = labels.masked_fill(batch["attention_mask"] == 0, IGNORED)
    return next_token_loss(module(**inputs, use_cache=False).logits, labels)


@dataclass(frozen=True)
class CausalLM(CausalLMOptions, Pretrained):
    """A decoder LM."""

    classes = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its tokenizer, which may be None.

        Raises:
            UserError: if there is no such loss or tower.
        """
        loss = find_loss(self.loss, {"next_token": language_loss})
        interface = LanguageInterface(processor) if processor is not None else None
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
