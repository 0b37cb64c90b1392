"""What a decoder language model can do with raw examples: answer, and choose between continuations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ecoflap.data.batch import Sample
from ecoflap.data.conversation import Conversation
from ecoflap.data.example import Example, Generation
from ecoflap.data.text.bos import surrounding_tokens
from ecoflap.models.core.batched_generation import Inputs, generate_texts
from ecoflap.models.core.chats import answer_tokens, as_lines, has_template
from ecoflap.models.core.losses import IGNORED
from ecoflap.models.core.prompts import decoded, padding_token
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.language.chat import encoded
from ecoflap.models.families.language.choices import common_prefix


class LanguageInterface:
    """Texts and their continuations, after the beginning-of-text token where the tokenizer sets one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokens(self, text: str) -> list[int]:
        """The ids that the model reads and writes on from: without what the tokenizer puts behind a text."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids[: len(ids) - len(self._appended)]

    @cached_property
    def _appended(self) -> list[int]:
        return surrounding_tokens(self.tokenizer)[1]

    def length(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.tokens(text))

    def encode_conversation(self, conversation: Conversation) -> Sample:
        """Tokens of the turns and the last answer, whose tokens alone are labels.

        The turns are what the tokenizer's chat template makes of them; without one, they stand a line each.

        Raises:
            UserError: if the template refuses the turns.
        """
        if has_template(self.tokenizer):
            asked, answer = encoded(self.tokenizer, conversation)
        else:
            text = as_lines(conversation)
            asked = self.tokens(text)
            answer = answer_tokens(self.tokenizer, text, conversation.target, self.tokenizer.eos_token_id)
        return {
            "input_ids": torch.tensor(asked + answer),
            "labels": torch.tensor([IGNORED] * len(asked) + answer),
        }

    @torch.no_grad()
    def choose(self, model: PrunableModel, texts: Sequence[str], choices: Sequence[str]) -> Tensor:
        """Log-probability of the first token by which each choice differs, [texts, choices].

        The model has read a text and what the choices, each with a space before it, have in common.

        Raises:
            UserError: if the tokenizer doesn't tell the choices apart by one token.
        """
        module: Any = model.module
        answered = ([self.tokens(f"{text} {choice}") for choice in choices] for text in texts)
        rows, apart = zip(*(common_prefix(self.tokenizer, one, choices) for one in answered), strict=True)
        ids, mask = (tensor.to(model.device) for tensor in _padded(rows, "right"))
        logits = module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        last = (
            logits[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
            .float()
            .log_softmax(dim=-1)
            .cpu()
        )
        return last.gather(1, torch.tensor(apart))

    @torch.no_grad()
    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """What the model writes after each text."""
        module: Any = model.module
        ids, mask = (
            tensor.to(model.device)
            for tensor in _padded([self.tokens(example.text) for example in examples], "left")
        )
        pad = padding_token(self.tokenizer)

        def generate(inputs: Inputs) -> Tensor:
            tokens: Tensor = module.generate(**inputs, pad_token_id=pad, **generation.options())
            return tokens[:, inputs["input_ids"].shape[1] :]

        return decoded(self.tokenizer, generate_texts(module, generate, ids, mask, pad))


def _padded(rows: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
    """Pad token ids on a side, left or right; returns ids and attention mask, [rows, tokens] each.

    The padding id does not matter, and many of these tokenizers have none.
    """
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)
    mask = pad_sequence(
        [torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True, padding_side=side
    )
    return ids, mask
