"""Put questions about pictures, and conversations, to a vision-language model, and read its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ecoflap.data.batch import Sample
from ecoflap.data.conversation import Conversation
from ecoflap.data.example import Example, Generation
from ecoflap.errors import UserError
from ecoflap.models.core.batched_generation import Inputs, generate_batch
from ecoflap.models.core.chats import answer_tokens, templated
from ecoflap.models.core.pictures import load_image
from ecoflap.models.core.prompts import decoded, generated_tokens, padding_token
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.targets import target_tokens
from ecoflap.models.families.vlm.chat import around_answer, chat_prompt
from ecoflap.models.families.vlm.processor_inputs import ProcessorInputs, with_answer, writes_after_prompt


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
            brief: text added after the question of each example.
            chat: options of the chat template.
            images: options of the image processor.

        Raises:
            UserError: if there is no chat template, or no such option of it or of the image processor.
        """
        self.module, self.processor, self.brief = module, processor, brief
        self.images = dict(images or {})
        self.inputs = ProcessorInputs(module, processor, self.images)
        self.is_chat, self.chat = prompt is None, dict(chat or {})
        self.prompt = chat_prompt(processor, self.chat) if prompt is None else prompt
        self.opening, self.end = around_answer(processor, self.chat) if prompt is None else (None, None)

    def encode(self, example: Example) -> Sample:
        """Inputs and labels of one question, with the leading dimension that the processor gives.

        The answer's tokens are put behind the question's, so that nothing else of the model's input (the text
        that a Q-Former reads, what the processor writes after a prompt) can see the answer.

        Raises:
            UserError: if question or answer hold the token of a picture.
        """
        self._require_text(example.text, "a question")
        text = self._question_prompt(example)
        question = self.inputs.of_question(load_image(example.image), text)
        begun = example.bare and example.text  # the answer goes on behind its first words
        return self._answered(question, text, example.target, None if begun else self.opening)

    def encode_conversation(self, conversation: Conversation) -> Sample:
        """Inputs and labels of one conversation, as ``encode`` has them; labels are of the last answer alone.

        ``brief`` is not added: the turns say how long the answers should be.

        Raises:
            UserError: if the prompt is for a single question, or template or processor refuse the
                conversation.
        """
        question, text = self._conversation_inputs(conversation)
        return self._answered(question, text, conversation.target, self.opening)

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The answer to each question."""
        images = [load_image(example.image) for example in examples]
        texts = [self._question_prompt(example) for example in examples]
        return self._answers(model, images, texts, generation)

    def reply(
        self, model: PrunableModel, conversations: Sequence[Conversation], generation: Generation
    ) -> list[str]:
        """What the model writes instead of the last answer of each conversation, see ``Replies``.

        Raises:
            UserError: see ``encode_conversation``.
        """
        if any(len(one.images) != 1 for one in conversations):
            (conversation,) = conversations
            inputs = self._on_device(model, self._conversation_inputs(conversation)[0])
            tokens = _new_tokens(model.module, generation, inputs)
            return decoded(self.processor.tokenizer, tokens)
        texts = [self._conversation_prompt(one) for one in conversations]
        images = [load_image(one.images[0]) for one in conversations]
        return self._answers(model, images, texts, generation)

    def check_prompt(self) -> None:
        """Refuse a prompt that doesn't show one picture, judging by what the processor makes of it.

        Raises:
            UserError: if there is no place for the picture, or more than one.
        """
        from PIL import Image

        blank, text = Image.new("RGB", (64, 64)), self.prompt.format("what is this?")
        try:
            self.inputs.of_conversation([blank], text)
        except UserError as error:
            raise UserError(
                f"model.prompt={self.prompt!r} must show one picture, which {self._image_token} stands for;"
                f" {error.__cause__}"
            ) from error

    def _question_prompt(self, example: Example) -> str:
        """The prompt of an example; for a bare text, only the prompt's opening and the text."""
        if not example.bare:
            return replace(example, text=example.text + (self.brief or "")).worded(self.prompt)
        if not self.is_chat and self._image_token not in self.prompt:
            return example.worded(self.prompt)
        opened = self.prompt.format("")
        space = "" if opened[-1:].isspace() or not example.text else " "
        return opened + space + example.text

    def _conversation_prompt(self, conversation: Conversation) -> str:
        """All before the last answer, in the chat template or the prompt.

        Raises:
            UserError: see ``encode_conversation``.
        """
        if self.is_chat:
            return templated(self.processor, conversation.asked(), self.chat)
        question = conversation.example()
        if question is None or question.image is None:
            first = "set calibration.turns=first, " if conversation.has_earlier_answers else ""
            raise UserError(
                f"a conversation of {len(conversation.turns)} turns and {len(conversation.images)} pictures"
                f" needs a chat template, and model.prompt is for a question about a picture; {first}take"
                " such rows out, or set model.prompt=null where the processor has a template"
            )
        return question.worded(self.prompt)

    def _conversation_inputs(self, conversation: Conversation) -> tuple[dict[str, Any], str]:
        """Inputs of all before the last answer, and the text that they were made of.

        Raises:
            UserError: see ``encode_conversation``.
        """
        text = self._conversation_prompt(conversation)
        images = [load_image(image) for image in conversation.images]
        if self.is_chat:
            return self.inputs.of_conversation(images, text), text
        return self.inputs.of_question(images[0], text), text

    def _answered(self, question: dict[str, Any], text: str, target: str, opening: str | None) -> Sample:
        """A question's inputs with the tokens of its answer behind them, and labels.

        Args:
            question: the processor's outputs.
            text: what it made them of.
            target: the answer.
            opening: see ``answer_tokens``.

        Raises:
            UserError: if the answer holds the token of a picture.
        """
        self._require_text(target, "an answer")
        tokenizer = self.processor.tokenizer
        if not writes_after_prompt(self.module):
            return {**question, "labels": torch.tensor([target_tokens(self.module, tokenizer, target)])}
        last = tokenizer.eos_token_id if self.end is None else self.end
        before = "\n" if self._is_paligemma else text
        answer = torch.tensor([answer_tokens(tokenizer, before, target, last, opening)])
        return with_answer(question, answer, token_type=int(self._is_paligemma))

    def _answers(
        self, model: PrunableModel, images: list[Any], texts: list[str], generation: Generation
    ) -> list[str]:
        """What the model writes behind each text, which is about one picture."""

        def inputs(rows: slice) -> Inputs:
            return self._on_device(model, self.inputs.of_batch(images[rows], texts[rows]))

        tokens = generate_batch(
            model.module,
            partial(_new_tokens, model.module, generation),
            inputs(slice(None)),
            lambda row: inputs(slice(row, row + 1)),
            padding_token(self.processor.tokenizer),
        )
        return decoded(self.processor.tokenizer, tokens)

    def _on_device(self, model: PrunableModel, inputs: Mapping[str, Any]) -> Inputs:
        """A processor's outputs on the model's device, in its data type."""
        from transformers import BatchFeature

        moved: Inputs = BatchFeature(dict(inputs)).to(model.device, next(model.module.parameters()).dtype)
        return moved

    def _require_text(self, text: str, what: str) -> None:
        """Refuse a text with the token of a picture.

        Raises:
            UserError: if it has one.
        """
        if self._image_token in text:
            raise UserError(
                f"{what} has {self._image_token}, which stands for a picture: {text[:80]!r}; take it out"
            )

    @property
    def _image_token(self) -> str:
        """What stands for a picture in a text."""
        return str(getattr(self.processor, "image_token", None) or "<image>")

    @property
    def _is_paligemma(self) -> bool:
        """Whether the model is a PaliGemma.

        It ends its prompts with a line end of its own, and marks written tokens by token type 1, which marks
        images in Gemma 3.
        """
        return bool(self.module.config.model_type == "paligemma")


def _new_tokens(module: Any, generation: Generation, inputs: Inputs) -> Tensor:
    """What a model writes behind each text of a processor's outputs, [texts, new tokens]."""
    tokens: Tensor = module.generate(**inputs, **generation.options())
    return generated_tokens(tokens, inputs["input_ids"]) if writes_after_prompt(module) else tokens
