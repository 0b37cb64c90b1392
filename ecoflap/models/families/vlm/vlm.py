"""Vision-language models of transformers that write text: LLaVA, Qwen2.5-VL, SmolVLM, InternVL, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.example import Example, Generation
from ecoflap.errors import UserError, did_you_mean
from ecoflap.models.core.losses import find_loss, next_token_loss, token_loss
from ecoflap.models.core.pictures import load_image
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.token_kinds import declaring, placeholder_kinds
from ecoflap.models.families.vlm.chat import chat_prompt, end_of_answer
from ecoflap.models.families.vlm.joining import joined
from ecoflap.models.families.vlm.options import VisionLanguageOptions
from ecoflap.models.loading.loader import Pretrained, Selection, check_prompt, generated_tokens, prunable

# Models that AutoModelForImageTextToText loads and that have no answer to take the loss of.
NO_ANSWER = {
    "diffusion_gemma": "fills blocks of random tokens by diffusion",
    "pi0": "steers a robot",
    "pp_formulanet": "doesn't make its decoder's input from labels",
}


def writes_after_prompt(module: Any) -> bool:
    """Whether question and answer are one sequence, not two as in InstructBLIP with a T5."""
    config = module.config
    text = getattr(config, "text_config", config)
    return not (getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False))


def answer_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the answer given picture and question, per sample, [batch].

    Each sample's tensors keep the first dimension of the processor's outputs (one, or a number of patches or
    tiles).

    Raises:
        UserError: if the model returns no probabilities of answers.
    """
    kind = str(getattr(module.config, "model_type", None))
    if kind in NO_ANSWER:
        raise UserError(
            f"model.loss=answer asks for the probability of an answer, and {kind} {NO_ANSWER[kind]}; "
            "set model.loss to a function of your own, or choose another model"
        )
    inputs = joined(module, batch)
    input_ids, labels = inputs.get("input_ids"), inputs["labels"]
    if not writes_after_prompt(module):
        with declaring(encoder=placeholder_kinds(module, input_ids, None)):
            return token_loss(module(**inputs).logits, labels)
    # With labels, most models would compute a loss of their own over all tokens. In some releases, a
    # PaliGemma attends to later tokens of the answer unless it receives them.
    if kind != "paligemma":
        del inputs["labels"]
    with declaring(language=placeholder_kinds(module, input_ids, labels)):
        logits = module(**inputs).logits
    return next_token_loss(logits[:, -labels.shape[1] :], labels)  # GIT's begin with those of the picture


class VlmInterface:
    """Questions about pictures, and their answers."""

    sees = True

    def __init__(
        self,
        module: Any,
        processor: Any,
        prompt: str | None,
        brief: str | None = None,
        chat: Mapping[str, Any] | None = None,
        images: Mapping[str, Any] | None = None,
    ) -> None:
        """Find out how questions are put to the model.

        Args:
            module: the model.
            processor: its processor.
            prompt: how a question is put to it, with one ``{}``; None for the chat template.
            brief: what is put behind each question.
            chat: options of the chat template.
            images: options of the image processor.

        Raises:
            UserError: if there is no chat template, or no such option of it or of the image processor.
        """
        self.module, self.processor, self.brief = module, processor, brief
        self.images = dict(images or {})
        check_image_options(processor, self.images)
        self.is_chat = prompt is None
        self.prompt = chat_prompt(processor, chat or {}) if prompt is None else prompt
        self.end = end_of_answer(processor, chat or {}) if prompt is None else None

    def encode(self, example: Example) -> Sample:
        """Inputs and labels of one question, with the leading dimension that the processor gives.

        The answer's tokens are put behind the question's, so that nothing else of the model's input (the text
        that a Q-Former reads, what the processor writes after a prompt) can see the answer.
        """
        tokenizer = self.processor.tokenizer
        text = self._ask(example)
        question = dict(self._inputs(load_image(example.image or ""), text))
        if not writes_after_prompt(self.module):
            return {**question, "labels": tokenizer(example.target, return_tensors="pt")["input_ids"]}
        space = "" if text[-1:].isspace() or self._is_paligemma else " "
        last = tokenizer.eos_token_id if self.end is None else self.end
        end = [] if last is None else [last]
        answer = torch.tensor(
            [
                _continuation(tokenizer, "\n" if self._is_paligemma else text[-1:], space + example.target)
                + end
            ]
        )
        asked = question["input_ids"]
        fills = {"attention_mask": 1, "token_type_ids": int(self._is_paligemma), "mm_token_type_ids": 0}
        longer = {
            name: torch.cat([question[name], torch.full_like(answer, fill)], dim=1)
            for name, fill in fills.items()
            if name in question
        }
        labels = torch.cat([torch.full_like(asked, -100), answer], dim=1)
        return {**question, **longer, "input_ids": torch.cat([asked, answer], dim=1), "labels": labels}

    @property
    def _is_paligemma(self) -> bool:
        """Whether the model is a PaliGemma.

        It ends its prompts with a line end of its own, and marks written tokens by token type 1, which marks
        images in Gemma 3.
        """
        return bool(self.module.config.model_type == "paligemma")

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The answer to each question."""
        module: Any = model.module
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left" if writes_after_prompt(module) else "right"
        images = [load_image(example.image or "") for example in examples]
        texts = [self._ask(example) for example in examples]
        inputs = self._batch(images, texts).to(model.device, next(module.parameters()).dtype)
        tokens = module.generate(**inputs, **generation.options())
        answers = generated_tokens(tokens, inputs["input_ids"]) if writes_after_prompt(module) else tokens
        return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def _ask(self, example: Example) -> str:
        """The prompt of an example; for a bare text, only the prompt's opening and the text."""
        if not example.bare:
            return replace(example, text=example.text + (self.brief or "")).worded(self.prompt)
        if not self.is_chat and str(getattr(self.processor, "image_token", "<image>")) not in self.prompt:
            return example.worded(self.prompt)
        opened = self.prompt.format("")
        space = "" if opened[-1:].isspace() or not example.text else " "
        return opened + space + example.text

    def _batch(self, images: list[Any], texts: list[str]) -> Any:
        """Inputs of several questions; some processors take flat lists of pictures, others nested ones."""
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
        if self.images:
            options["images_kwargs"] = self.images
        return self.processor(images=images, text=texts, return_tensors="pt", **options)


def check_image_options(processor: Any, options: Mapping[str, Any]) -> None:
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


def _continuation(tokenizer: Any, before: str, text: str) -> list[int]:
    """The tokens of a text that follows another; alone, some LLaMA tokenizers would prepend a space token."""
    first, both, alone = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, before + text, text)
    )
    return list(both[len(first) :] if both[: len(first)] == first else alone)


@dataclass(frozen=True)
class VisionLanguage(VisionLanguageOptions, Pretrained):
    """A vision-language model."""

    def __post_init__(self) -> None:
        if self.prompt is not None:
            check_prompt(self.prompt)

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and processor.

        Raises:
            UserError: if there is nothing to load, it does not fit on the device, or a tower is unknown.
        """
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        return self.from_module(
            *self.read(AutoConfig, AutoModelForImageTextToText, AutoProcessor, device), selection
        )

    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its processor, which may be None.

        Raises:
            UserError: if there is no such loss, tower or known prompt.
        """
        loss = find_loss(self.loss, {"answer": answer_loss})
        interface = (
            VlmInterface(module, processor, self.prompt, self.brief, self.chat, self.images)
            if processor is not None
            else None
        )
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
