"""Any vision-language model of transformers that writes text: LLaVA, Qwen2.5-VL, SmolVLM, InternVL, PaliGemma, InstructBLIP, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.examples import Example, Generation
from ecoflap.models.loading import Pretrained, Selection, check_prompt, prunable
from ecoflap.models.losses import find_loss, next_token_loss, token_loss
from ecoflap.models.pictures import load_image
from ecoflap.models.prunable import Batch, PrunableModel, Sample


def writes_after_prompt(module: Any) -> bool:
    """Whether question and answer are one sequence; an encoder-decoder (InstructBLIP with a T5) has them apart."""
    config = module.config
    text = getattr(config, "text_config", config)
    return not (getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False))


def answer_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the answer given picture and question, per sample, [batch].

    Each sample's tensors keep the first dimension that its processor gave them (one, or a number of patches or tiles); samples are put one
    behind the other along it, as every such model expects.
    """
    inputs = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
    logits = module(**inputs).logits
    per_sample = next_token_loss if writes_after_prompt(module) else token_loss
    return per_sample(logits, inputs["labels"])


class VlmInterface:
    """Questions about pictures, and their answers."""

    def __init__(self, module: Any, processor: Any, prompt: str | None) -> None:
        self.module, self.processor = module, processor
        self.prompt = prompt or _chat_prompt(processor)

    def encode(self, example: Example) -> Sample:
        """Inputs and labels of one question, with the leading dimension that the processor gives."""
        image, text = load_image(example.image or ""), self.prompt.format(example.text)
        question = self.processor(images=image, text=text, return_tensors="pt")
        if not writes_after_prompt(self.module):
            return {**question, "labels": self.processor.tokenizer(example.target, return_tensors="pt")["input_ids"]}
        end = self.processor.tokenizer.eos_token or ""
        inputs = dict(self.processor(images=image, text=f"{text} {example.target}{end}", return_tensors="pt"))
        asked = question["input_ids"].shape[1]
        labels = inputs["input_ids"].clone()
        labels[:, :asked] = -100
        if "token_type_ids" in inputs:  # PaliGemma: what is written attends to what stands before it only
            inputs["token_type_ids"][:, asked:] = 1
        return {**inputs, "labels": labels}

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The answer to each question."""
        module: Any = model.module
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left" if writes_after_prompt(module) else "right"
        images = [load_image(example.image or "") for example in examples]
        texts = [self.prompt.format(example.text) for example in examples]
        inputs = self.processor(images=images, text=texts, padding=True, return_tensors="pt").to(model.device, next(module.parameters()).dtype)
        tokens = module.generate(**inputs, **generation.options())
        written = tokens[:, inputs["input_ids"].shape[1] :] if writes_after_prompt(module) else tokens
        return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


def _chat_prompt(processor: Any) -> str:
    """The processor's own way to put one question about one picture, with ``{}`` for the question.

    Raises:
        UserError: it has none.
    """
    if not getattr(processor, "chat_template", None):
        raise UserError(
            "this model's processor has no chat template; say how a question is put to it with model.prompt, such as 'USER: <image>\\n{} ASSISTANT:'"
        )
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "@QUESTION@"}]}]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text.replace("{", "{{").replace("}", "}}").replace("@QUESTION@", "{}")


@dataclass(frozen=True)
class VisionLanguage(Pretrained):
    """A vision-language model; see ``Pretrained`` for its other options.

    Attributes:
        prompt: how a question is put to the model, with one ``{}``; null for the processor's chat template.
        loss: answer, or a function by its dotted path.
    """

    name: str = "vlm"
    prompt: str | None = None
    loss: str = "answer"

    def __post_init__(self) -> None:
        if self.prompt is not None:
            check_prompt(self.prompt)

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and processor.

        Raises:
            UserError: nothing loadable there, it doesn't fit, or a tower is unknown.
        """
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        loss = find_loss(self.loss, {"answer": answer_loss})
        module, processor = self.read(AutoConfig, AutoModelForImageTextToText, AutoProcessor, device)
        interface = VlmInterface(module, processor, self.prompt) if processor is not None else None
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
