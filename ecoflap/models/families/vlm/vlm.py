"""Vision-language models of transformers that write text: LLaVA, Qwen2.5-VL, SmolVLM, InternVL, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.conversation import Conversation
from ecoflap.data.example import Example, Generation
from ecoflap.errors import UserError
from ecoflap.models.core.chats import has_template, templated, written
from ecoflap.models.core.losses import find_loss, next_token_loss, token_loss
from ecoflap.models.core.pictures import load_image
from ecoflap.models.core.prunable import PrunableModel
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
    if not writes_after_prompt(module):
        return token_loss(module(**inputs).logits, inputs["labels"])
    # In some releases, a PaliGemma attends to later tokens of the answer unless it receives labels.
    if kind == "paligemma":
        return next_token_loss(module(**inputs).logits, inputs["labels"])
    labels = inputs.pop("labels")  # with labels, other models would compute their own loss over all tokens
    logits = module(**inputs).logits
    return next_token_loss(logits[:, -labels.shape[1] :], labels)  # GIT's begin with those of the picture


class VlmInterface:
    """Questions about pictures, and their answers."""

    sees = True

    def __init__(self, module: Any, processor: Any, prompt: str | None, brief: str | None = None) -> None:
        self.module, self.processor, self.brief = module, processor, brief
        self.prompt = prompt or _chat_prompt(processor)
        self.chats = prompt is None

    def encode(self, example: Example) -> Sample:
        """Inputs and labels of one question, with the leading dimension that the processor gives.

        The answer's tokens are put behind the question's, so that nothing else of the model's input (the text
        that a Q-Former reads, what the processor writes after a prompt) can see the answer.
        """
        text = self._ask(example)
        question = self.processor(images=load_image(example.image or ""), text=text, return_tensors="pt")
        return self._answered(dict(question), text, example.target)

    def encode_conversation(self, conversation: Conversation) -> Sample:
        """Inputs and labels of one conversation, as ``encode`` has them; labels are of the last answer alone.

        Raises:
            UserError: if the prompt is for a single question, or template or processor refuse the
                conversation.
        """
        question, text = self._asked(conversation)
        return self._answered(question, text, conversation.target)

    def reply(self, model: PrunableModel, conversation: Conversation, generation: Generation) -> str:
        """What the model writes instead of the last answer of a conversation.

        Raises:
            UserError: see ``encode_conversation``.
        """
        module: Any = model.module
        dtype = next(module.parameters()).dtype
        inputs = {
            name: tensor.to(model.device, dtype if tensor.is_floating_point() else None)
            for name, tensor in self._asked(conversation)[0].items()
        }
        tokens = module.generate(**inputs, **generation.options())
        written = generated_tokens(tokens, inputs["input_ids"]) if writes_after_prompt(module) else tokens
        text: str = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)[0]
        return text.strip()

    def _asked(self, conversation: Conversation) -> tuple[dict[str, Any], str]:
        """Inputs of all before the last answer, and the text that they were made of.

        Raises:
            UserError: see ``encode_conversation``.
        """
        if not self.chats:
            raise UserError(
                f"a conversation of {len(conversation.turns)} turns and {len(conversation.images)} pictures"
                " needs a chat template, and model.prompt is for a question about a picture; set"
                " calibration.turns=first, or model.prompt=null where the processor has a template"
            )
        text = templated(self.processor, conversation.asked())
        return self._shown(text, [load_image(image) for image in conversation.images]), text

    def _shown(self, text: str, images: list[Any]) -> dict[str, Any]:
        """Inputs of a text with any number of pictures, which processors take flat or by text.

        Raises:
            UserError: if the processor can't read them.
        """
        try:
            if not images:
                return dict(self.processor(text=[text], return_tensors="pt"))
            try:
                return dict(self.processor(images=images, text=[text], return_tensors="pt"))
            except ValueError:
                return dict(self.processor(images=[images], text=[text], return_tensors="pt"))
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"this model's processor can't read a conversation with {len(images)} pictures ({error});"
                " take such rows out, or set calibration.turns=first"
            ) from error

    def _answered(self, question: dict[str, Any], text: str, target: str) -> Sample:
        """A question's inputs with the tokens of its answer behind them, and labels.

        Args:
            question: the processor's outputs.
            text: what it made them of.
            target: the answer.
        """
        tokenizer = self.processor.tokenizer
        if not writes_after_prompt(self.module):
            return {**question, "labels": tokenizer(target, return_tensors="pt")["input_ids"]}
        answer = torch.tensor([written(tokenizer, "\n" if self._is_paligemma else text, target)])
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
        if str(getattr(self.processor, "image_token", "<image>")) not in self.prompt:
            return example.worded(self.prompt)
        opened = self.prompt.format("")
        space = "" if opened[-1:].isspace() or not example.text else " "
        return opened + space + example.text

    def _batch(self, images: list[Any], texts: list[str]) -> Any:
        """Inputs of several questions; some processors take flat lists of pictures, others nested ones."""
        try:
            return self.processor(images=images, text=texts, padding=True, return_tensors="pt")
        except ValueError:
            return self.processor(
                images=[[image] for image in images], text=texts, padding=True, return_tensors="pt"
            )


def _chat_prompt(processor: Any) -> str:
    """The processor's chat template for one question about one picture, with ``{}`` for the question.

    Raises:
        UserError: if it has none.
    """
    if not has_template(processor):
        raise UserError(
            "this model's processor has no chat template; say how a question is put to it with model.prompt,"
            " such as 'USER: <image>\\n{} ASSISTANT:'"
        )
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "@QUESTION@"}]}]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text.replace("{", "{{").replace("}", "}}").replace("@QUESTION@", "{}")


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
            VlmInterface(module, processor, self.prompt, self.brief) if processor is not None else None
        )
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
