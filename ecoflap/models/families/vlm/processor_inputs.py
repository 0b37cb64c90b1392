"""The inputs that a processor makes of texts and pictures, in whichever form it takes them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ecoflap.data.batch import Sample
from ecoflap.data.text.bos import surrounding_tokens
from ecoflap.errors import UserError, did_you_mean
from ecoflap.models.core.losses import IGNORED

WRITTEN = {"attention_mask": 1, "mm_token_type_ids": 0, "moe_mm_token_type_ids": 0}
"""What processors say of tokens that are read and are text; ERNIE routes tokens by the last one."""
SEEN = "cross_attention_mask"
"""Which tiles of which pictures a token of Mllama attends to, [1, tokens, pictures, tiles]."""


def writes_after_prompt(module: Any) -> bool:
    """Whether question and answer are one sequence, not two as in InstructBLIP with a T5."""
    config = module.config
    text = getattr(config, "text_config", config)
    return not (getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False))


class ProcessorInputs:
    """Makes inputs of a vision-language model with its processor."""

    def __init__(self, module: Any, processor: Any, options: Mapping[str, Any]) -> None:
        """Check the options.

        Args:
            module: the model.
            processor: its processor.
            options: of the image processor.

        Raises:
            UserError: if the image processor doesn't have one of them.
        """
        _check_options(processor, options)
        self.module, self.processor, self.options = module, processor, dict(options)

    def of_question(self, image: Any, text: str) -> dict[str, Any]:
        """Inputs of a text about one picture."""
        return dict(self._inputs(image, text))

    def of_conversation(self, images: list[Any], text: str) -> dict[str, Any]:
        """Inputs of a text with any number of pictures, which processors take flat or by text.

        By text is first, as chat templates have it: LLaVA-OneVision cuts the only picture of a text into
        crops, and takes flat ones to be of a text each.

        Raises:
            UserError: if the processor can't read them.
        """
        try:
            if not images:
                return dict(self._inputs(None, [text]))
            try:
                return dict(self._inputs([images], [text]))
            except (ValueError, TypeError, IndexError, AttributeError):
                return dict(self._inputs(images, [text]))
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"this model's processor can't read a conversation with {len(images)} pictures ({error});"
                " take such rows out, or set calibration.turns=first"
            ) from error

    def of_batch(self, images: list[Any], texts: list[str]) -> Any:
        """Inputs of several questions; some processors take flat lists of pictures, others nested ones."""
        side = "left" if writes_after_prompt(self.module) else "right"
        self.processor.tokenizer.padding_side = side
        try:
            return self._inputs(images, texts, padding=True)
        except ValueError:
            return self._inputs([[image] for image in images], texts, padding=True)

    def _inputs(self, images: Any, texts: str | list[str], **options: Any) -> Any:
        """Inputs of one or several questions.

        A chat template that writes the first token of a text (Gemma 3) would get a second one.
        """
        first = getattr(self.processor.tokenizer, "bos_token", None)
        begun = texts if isinstance(texts, str) else texts[0]
        if first and begun.startswith(first):
            options["add_special_tokens"] = False
        if images is not None:
            options |= {"images": images, **({"images_kwargs": self.options} if self.options else {})}
        return self._unended(self.processor(text=texts, return_tensors="pt", **options))

    def _unended(self, inputs: Any) -> Any:
        """Inputs without what the tokenizer puts behind each text, such as ``</s>``; answers stand there."""
        ids, count = inputs["input_ids"], len(self._appended)
        if count and writes_after_prompt(self.module) and bool((ids[:, -count:] == self._appended).all()):
            for name in (*WRITTEN, "input_ids", "token_type_ids", SEEN):
                if name in inputs:
                    inputs[name] = inputs[name][:, :-count]
        return inputs

    @cached_property
    def _appended(self) -> Tensor:
        return torch.tensor(surrounding_tokens(self.processor.tokenizer)[1])


def with_answer(question: Mapping[str, Any], answer: Tensor, token_type: int) -> Sample:
    """A question's inputs with the tokens of its answer behind them, and labels of these alone.

    Args:
        question: inputs of one text.
        answer: tokens, [1, answer tokens].
        token_type: the token type of written text.
    """
    asked = question["input_ids"]
    fills = {**WRITTEN, "token_type_ids": token_type}
    longer = {
        name: torch.cat([question[name], torch.full_like(answer, fill)], dim=1)
        for name, fill in fills.items()
        if name in question
    }
    if (seen := question.get(SEEN)) is not None:  # the answer sees what the question's last token sees
        longer[SEEN] = torch.cat([seen, seen[:, -1:].expand(-1, answer.shape[1], -1, -1)], dim=1)
    labels = torch.cat([torch.full_like(asked, IGNORED), answer], dim=1)
    return {**question, **longer, "input_ids": torch.cat([asked, answer], dim=1), "labels": labels}


def _check_options(processor: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that the image processor doesn't have.

    Raises:
        UserError: if there is one.
    """
    images = getattr(processor, "image_processor", None)
    known = getattr(getattr(images, "valid_kwargs", None), "__annotations__", {})
    for name in options:
        if name not in known:
            raise UserError(
                f"model.images.{name} is not known to this model's {type(images).__name__};"
                f" {did_you_mean(name, known)}"
            )
