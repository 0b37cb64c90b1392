"""BLIP of transformers: visual questions and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.example import Example, Generation
from ecoflap.errors import UserError
from ecoflap.models.core.losses import IGNORED, find_loss, next_token_loss
from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.prompts import decoded
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip.options import BlipCaptionOptions, BlipVqaOptions
from ecoflap.models.families.blip.positions import set_image_size
from ecoflap.models.families.blip.ranking import best_answers
from ecoflap.models.loading.loader import Pretrained, prunable
from ecoflap.models.loading.modes import require_loaded

LONGEST = 35  # tokens of a question, as BLIP cuts them
LONGEST_CAPTION = 40  # the same of a caption, with its prompt


def check_encoder_token(token: int | None, module: Any) -> None:
    """Refuse a token that the text encoder has no embedding for.

    Raises:
        UserError: if the text encoder has no embedding for a token.
    """
    words = module.config.text_config.vocab_size
    if token is not None and not 0 <= token < words:
        raise UserError(
            f"model.encoder_token={token}: this model has {words} tokens; give the id of its [ENC], or null"
            " where it was trained with [CLS]"
        )


def image_states(module: Any, pixels: Tensor) -> Tensor:
    """Output of the vision tower, [images, tokens, features]."""
    states: Tensor = module.vision_model(pixel_values=pixels.to(next(module.parameters()).dtype))[0]
    return states


def cross_attended(states: Tensor) -> dict[str, Tensor]:
    """States of pictures, [images, tokens, features], as arguments of a tower that attends to them."""
    return {
        "encoder_hidden_states": states,
        "encoder_attention_mask": states.new_ones(states.shape[:2], dtype=torch.long),
    }


def vqa_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the answer given picture and question, per sample, [batch]."""
    mask = batch["attention_mask"]
    pictures = cross_attended(image_states(module, batch["pixel_values"]))
    states = module.text_encoder(input_ids=batch["input_ids"], attention_mask=mask, **pictures)[0]
    logits = module.text_decoder(
        input_ids=batch["labels"].clamp(min=0), encoder_hidden_states=states, encoder_attention_mask=mask
    ).logits
    return next_token_loss(logits, batch["labels"])


def caption_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the caption without its prompt, per sample, [batch]."""
    pictures = cross_attended(image_states(module, batch["pixel_values"]))
    logits = module.text_decoder(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **pictures
    ).logits
    return next_token_loss(logits, batch["labels"])


class VqaInterface:
    """Questions about pictures, which begin with ``encoder_token``; None keeps the tokenizer's [CLS]."""

    sees = True

    def __init__(self, module: Any, processor: Any, encoder_token: int | None) -> None:
        self.module, self.processor, self.encoder_token = module, processor, encoder_token
        self.pixels = Pixels.of(processor.image_processor)

    def encode(self, example: Example) -> Sample:
        """Encode picture, question, and the answer with start and end token."""
        labels = self._answers([example.target])["input_ids"][0]
        sample = {"pixel_values": self.pixels([example.image])[0], "labels": labels}
        return sample | {name: tokens[0] for name, tokens in self._questions([example.text]).items()}

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The answer to each question."""
        module: Any = model.module
        # transformers lets the decoder see padded question tokens; questions of one length have none.
        answers: dict[int, str] = {}
        for rows, texts in _same_length([self._questions([example.text]) for example in examples]):
            pixels = self.pixels([examples[row].image for row in rows]).to(next(module.parameters()))
            tokens = module.generate(
                pixel_values=pixels,
                **{name: ids.to(model.device) for name, ids in texts.items()},
                **generation.options(),
            )
            answers |= dict(zip(rows, decoded(self.processor.tokenizer, tokens), strict=True))
        return [answers[row] for row in range(len(examples))]

    @torch.no_grad()
    def rank(
        self, model: PrunableModel, examples: Sequence[Example], answers: Sequence[str], k: int
    ) -> list[str]:
        """The likeliest given answer to each question, among the ``k`` with the likeliest first tokens."""
        module: Any = model.module
        questions = {
            name: tokens.to(model.device)
            for name, tokens in self._questions([example.text for example in examples]).items()
        }
        pixels = self.pixels([one.image for one in examples]).to(model.device)
        pictures = cross_attended(image_states(module, pixels))
        states = module.text_encoder(**questions, **pictures)[0]
        given = {name: tokens.to(model.device) for name, tokens in self._answers(answers).items()}
        return [
            answers[row]
            for row in best_answers(module.text_decoder, states, questions["attention_mask"], **given, k=k)
        ]

    def _questions(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self._tokens(texts, self.encoder_token)

    def _answers(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self._tokens(texts, self.module.decoder_start_token_id)

    def _tokens(self, texts: Sequence[str], first: int | None) -> dict[str, Tensor]:
        """Ids and attention mask, [texts, tokens] each, with ``first`` in the place of [CLS]."""
        tokens = self.processor.tokenizer(
            list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        if first is not None:
            tokens["input_ids"][:, 0] = first
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}


class CaptionInterface:
    """Pictures and their captions."""

    sees = True

    def __init__(self, module: Any, processor: Any, prompt: str) -> None:
        self.module, self.processor, self.prompt = module, processor, prompt
        self.pixels = Pixels.of(processor.image_processor)

    def encode(self, example: Example) -> Sample:
        """Encode picture, prompt and caption; the prompt and what begins the caption are not targets."""
        begun = f"{self.prompt} {example.text}".strip() if example.bare else self.prompt
        text = f"{self.prompt} {example.caption}"
        tokens = self.processor.tokenizer(
            text, truncation=True, max_length=LONGEST_CAPTION, return_tensors="pt"
        )
        input_ids = tokens["input_ids"][0].clone()
        input_ids[0] = self.module.config.text_config.bos_token_id
        labels = input_ids.clone()
        labels[: len(self.processor.tokenizer(begun)["input_ids"]) - 1] = IGNORED
        written = {"input_ids": input_ids, "attention_mask": tokens["attention_mask"][0], "labels": labels}
        return {"pixel_values": self.pixels([example.image])[0], **written}

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The caption of each picture, without its prompt."""
        module: Any = model.module
        prompt = self.processor.tokenizer([self.prompt] * len(examples), return_tensors="pt").to(model.device)
        pixels = self.pixels([example.image for example in examples]).to(next(module.parameters()))
        tokens = module.generate(
            pixel_values=pixels,
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            **generation.options(),
        )
        return decoded(self.processor.tokenizer, tokens[:, prompt["input_ids"].shape[1] - 1 :])


def _same_length(texts: Sequence[dict[str, Tensor]]) -> list[tuple[list[int], dict[str, Tensor]]]:
    """Group texts [1, tokens] by length: rows, and their tokens [texts, tokens]."""
    rows: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text["input_ids"].shape[1], []).append(row)
    return [
        (group, {name: torch.cat([texts[row][name] for row in group]) for name in texts[0]})
        for group in rows.values()
    ]


@dataclass(frozen=True)
class BlipVqa(BlipVqaOptions, Pretrained):
    """BLIP that answers questions."""

    classes = ("BlipConfig", "BlipForQuestionAnswering", "BlipProcessor")

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its processor, which may be None.

        Raises:
            UserError: if there is no such loss or tower.
        """
        loss = find_loss(self.loss, {"answer": vqa_loss})
        check_encoder_token(self.encoder_token, module)
        require_loaded(self, "image_size")
        if self.image_size is not None:
            set_image_size(module, processor, self.image_size)
        interface = VqaInterface(module, processor, self.encoder_token) if processor is not None else None
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)


@dataclass(frozen=True)
class BlipCaption(BlipCaptionOptions, Pretrained):
    """BLIP that writes captions."""

    classes = ("BlipConfig", "BlipForConditionalGeneration", "BlipProcessor")

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its processor, which may be None.

        Raises:
            UserError: if there is no such loss or tower.
        """
        loss = find_loss(self.loss, {"caption": caption_loss})
        interface = CaptionInterface(module, processor, self.prompt) if processor is not None else None
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
