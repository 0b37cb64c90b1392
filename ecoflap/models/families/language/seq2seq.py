"""Encoder-decoder language models of transformers: T5, Flan-T5, BART, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.example import Example, Generation
from ecoflap.models.core.losses import find_loss, token_loss
from ecoflap.models.core.prompts import decoded
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.targets import start_token, target_tokens
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.choices import common_prefix
from ecoflap.models.families.language.options import Seq2SeqOptions
from ecoflap.models.loading.loader import Pretrained, prunable


def continuation_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the target given the text, the paper's T5 loss: prefix language modelling, [batch]."""
    labels = batch["labels"]
    return token_loss(module(**batch, use_cache=False).logits, labels)


class Seq2SeqInterface:
    """Texts with their continuations."""

    def __init__(self, module: Any, tokenizer: Any) -> None:
        self.module, self.tokenizer = module, tokenizer

    def encode(self, example: Example) -> Sample:
        """Tokens of text and target."""
        text = self.tokenizer(example.text, return_tensors="pt")["input_ids"][0]
        target = torch.tensor(target_tokens(self.module, self.tokenizer, example.target))
        return {"input_ids": text, "attention_mask": torch.ones_like(text), "labels": target}

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """What the model writes after each text."""
        module: Any = model.module
        inputs = self.tokenizer([example.text for example in examples], padding=True, return_tensors="pt").to(
            model.device
        )
        tokens = module.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **generation.options()
        )
        return decoded(self.tokenizer, tokens)

    @torch.no_grad()
    def choose(self, model: PrunableModel, texts: Sequence[str], choices: Sequence[str]) -> Tensor:
        """Log-probability of each choice's first token that tells it apart, [texts, choices].

        The decoder has read what the choices have in common before, such as ``<s>``.

        Raises:
            UserError: if the tokenizer doesn't tell the choices apart by one token.
        """
        module: Any = model.module
        inputs = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(model.device)
        rows = [target_tokens(self.module, self.tokenizer, choice) for choice in choices]
        common, apart = common_prefix(self.tokenizer, rows, choices)
        start = torch.tensor([[start_token(module), *common]], device=model.device)
        logits = module(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=start.expand(len(texts), -1),
            use_cache=False,
        ).logits
        return logits[:, -1].float().log_softmax(dim=-1)[:, apart].cpu()

    def length(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.tokenizer(text)["input_ids"])


@dataclass(frozen=True)
class Seq2Seq(Seq2SeqOptions, Pretrained):
    """An encoder-decoder LM."""

    classes = ("AutoConfig", "AutoModelForSeq2SeqLM", "AutoTokenizer")

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its tokenizer, which may be None.

        Raises:
            UserError: if there is no such loss or tower.
        """
        loss = find_loss(self.loss, {"continuation": continuation_loss})
        interface = Seq2SeqInterface(module, processor) if processor is not None else None
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
