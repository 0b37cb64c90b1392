"""BLIP of transformers: visual questions and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecoflap.models.examples import Example, Generation
from ecoflap.models.loading import Pretrained, Selection, prunable
from ecoflap.models.losses import find_loss, next_token_loss
from ecoflap.models.pictures import Pixels
from ecoflap.models.prunable import Batch, PrunableModel, Sample


def image_states(module: Any, pixels: Tensor) -> dict[str, Tensor]:
    """What a text tower reads of a picture, as keyword arguments."""
    states = module.vision_model(pixel_values=pixels.to(next(module.parameters()).dtype))[0]
    return {"encoder_hidden_states": states, "encoder_attention_mask": states.new_ones(states.shape[:2], dtype=torch.long)}


def vqa_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the answer that the decoder writes about picture and question, per sample, [batch]."""
    mask = batch["attention_mask"]
    states = module.text_encoder(input_ids=batch["input_ids"], attention_mask=mask, **image_states(module, batch["pixel_values"]))[0]
    logits = module.text_decoder(input_ids=batch["labels"].clamp(min=0), encoder_hidden_states=states, encoder_attention_mask=mask).logits
    return next_token_loss(logits, batch["labels"])


def caption_loss(module: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the caption, its prompt left out, per sample, [batch]."""
    states = image_states(module, batch["pixel_values"])
    logits = module.text_decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **states).logits
    return next_token_loss(logits, batch["labels"])


class VqaInterface:
    """Questions about pictures."""

    sees = True

    def __init__(self, module: Any, processor: Any) -> None:
        self.module, self.processor = module, processor
        self.pixels = Pixels.of(processor.image_processor)

    def encode(self, example: Example) -> Sample:
        """Picture, question, and the answer as the decoder writes it: start token, words, end."""
        question = self.processor.tokenizer(example.text, return_tensors="pt")
        labels = self.processor.tokenizer(example.target, return_tensors="pt")["input_ids"][0]
        labels[0] = self.module.decoder_start_token_id
        sample = {"pixel_values": self.pixels([example.image or ""])[0], "labels": labels}
        return sample | {name: question[name][0] for name in ("input_ids", "attention_mask")}

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The answer to each question."""
        module: Any = model.module
        # transformers lets the decoder see padded question tokens; questions of one length have none.
        answers: dict[int, str] = {}
        for rows, texts in _same_length(self.processor.tokenizer, [example.text for example in examples]):
            pixels = self.pixels([examples[row].image or "" for row in rows]).to(next(module.parameters()))
            tokens = module.generate(pixel_values=pixels, **{name: ids.to(model.device) for name, ids in texts.items()}, **generation.options())
            answers |= dict(zip(rows, self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True))
        return [answers[row].strip() for row in range(len(examples))]


class CaptionInterface:
    """Pictures and their captions."""

    sees = True

    def __init__(self, module: Any, processor: Any, prompt: str) -> None:
        self.module, self.processor, self.prompt = module, processor, prompt
        self.pixels = Pixels.of(processor.image_processor)

    def encode(self, example: Example) -> Sample:
        """Picture, and prompt and caption as the decoder writes them; the prompt is no target."""
        tokens = self.processor.tokenizer(f"{self.prompt} {example.target}", return_tensors="pt")
        input_ids = tokens["input_ids"][0].clone()
        input_ids[0] = self.module.config.text_config.bos_token_id
        labels = input_ids.clone()
        labels[: len(self.processor.tokenizer(self.prompt)["input_ids"]) - 1] = -100
        text = {"input_ids": input_ids, "attention_mask": tokens["attention_mask"][0], "labels": labels}
        return {"pixel_values": self.pixels([example.image or ""])[0], **text}

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The caption of each picture, its prompt cut off."""
        module: Any = model.module
        prompt = self.processor.tokenizer([self.prompt] * len(examples), return_tensors="pt").to(model.device)
        pixels = self.pixels([example.image or "" for example in examples]).to(next(module.parameters()))
        tokens = module.generate(pixel_values=pixels, input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], **generation.options())
        written = tokens[:, prompt["input_ids"].shape[1] - 1 :]
        return [text.strip() for text in self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)]


def _same_length(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[int], dict[str, Tensor]]]:
    """The texts' rows by length in tokens, each group with its tokens."""
    rows: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(len(tokenizer(text)["input_ids"]), []).append(row)
    groups = []
    for group in rows.values():
        tokens = tokenizer([texts[row] for row in group], return_tensors="pt")
        groups.append((group, {name: tokens[name] for name in ("input_ids", "attention_mask")}))
    return groups


@dataclass(frozen=True)
class BlipVqa(Pretrained):
    """BLIP that answers questions; see ``Pretrained`` for its other options.

    Attributes:
        loss: answer, or a function by its dotted path.
    """

    name: str = "blip_vqa"
    loss: str = "answer"

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and processor.

        Raises:
            UserError: nothing loadable there, it doesn't fit, or a tower is unknown.
        """
        from transformers import BlipConfig, BlipForQuestionAnswering, BlipProcessor

        loss = find_loss(self.loss, {"answer": vqa_loss})
        module, processor = self.read(BlipConfig, BlipForQuestionAnswering, BlipProcessor, device)
        interface = VqaInterface(module, processor) if processor is not None else None
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)


@dataclass(frozen=True)
class BlipCaption(Pretrained):
    """BLIP that writes captions; see ``Pretrained`` for its other options.

    Attributes:
        prompt: what every caption begins with.
        loss: caption, or a function by its dotted path.
    """

    name: str = "blip_caption"
    prompt: str = "a picture of"
    loss: str = "caption"

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and processor.

        Raises:
            UserError: nothing loadable there, it doesn't fit, or a tower is unknown.
        """
        from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor

        loss = find_loss(self.loss, {"caption": caption_loss})
        module, processor = self.read(BlipConfig, BlipForConditionalGeneration, BlipProcessor, device)
        interface = CaptionInterface(module, processor, self.prompt) if processor is not None else None
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
