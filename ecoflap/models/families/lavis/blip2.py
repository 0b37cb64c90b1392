"""BLIP-2 with Flan-T5 of salesforce-lavis, which ECoFLaP's authors pruned, and its checkpoint format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.example import Example, Generation
from ecoflap.models.core.losses import token_loss
from ecoflap.models.core.pictures import Pixels
from ecoflap.models.core.prompts import check_prompt, decoded
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.token_kinds import declaring, prepended_kinds
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.lavis.options import LavisBlip2Options
from ecoflap.models.families.lavis.parts import LavisPretrained, read_tokenizer, require_lavis
from ecoflap.models.loading.loader import prunable

LONGEST = 32  # tokens of a prompt or an answer, as LAVIS cuts them


def encoder_inputs(module: Any, pixels: Tensor, input_ids: Tensor) -> Tensor:
    """Inputs of T5's encoder: the image's Q-Former queries, then the prompt, [batch, tokens, features]."""
    image = module.ln_vision(module.visual_encoder(pixels.to(module.query_tokens.dtype)))
    queries = module.query_tokens.expand(len(image), -1, -1)
    seen = module.Qformer.bert(
        query_embeds=queries, encoder_hidden_states=image, return_dict=True
    ).last_hidden_state
    return torch.cat([module.t5_proj(seen), module.t5_model.encoder.embed_tokens(input_ids)], dim=1)


def answer_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the answer or caption given image and prompt, the paper's BLIP-2 loss, [batch].

    LAVIS' own forward returns one loss for the whole batch.
    """
    model: Any = module
    inputs, labels = encoder_inputs(model, batch["pixel_values"], batch["input_ids"]), batch["labels"]
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    mask = nn.functional.pad(mask, (inputs.shape[1] - mask.shape[1], 0), value=1)
    decoder_input_ids = model.t5_model._shift_right(labels)
    queries = inputs.shape[1] - batch["input_ids"].shape[1]
    with declaring(encoder=prepended_kinds(queries, batch["input_ids"], None)):
        output = model.t5_model(
            inputs_embeds=inputs, attention_mask=mask, decoder_input_ids=decoder_input_ids, return_dict=True
        )
    return token_loss(output.logits, labels)


class LavisBlip2Interface:
    """Questions about pictures, and their answers, through LAVIS' processors."""

    sees = True

    def __init__(self, tokenizer: Any, image_size: int, prompt: str) -> None:
        from lavis.processors.blip_processors import (
            BlipCaptionProcessor,
            BlipImageEvalProcessor,
            BlipQuestionProcessor,
        )

        self.tokenizer, self.prompt = tokenizer, prompt
        self.pixels = Pixels(BlipImageEvalProcessor(image_size))
        self.question, self.caption = BlipQuestionProcessor(), BlipCaptionProcessor()

    def encode(self, example: Example) -> Sample:
        """Pixels, prompt and answer of one question."""
        prompt = self._tokens([self._question_prompt(example)])
        answer = self._tokens([self.caption(example.target)])
        return {
            "pixel_values": self.pixels([example.image])[0],
            "input_ids": prompt["input_ids"][0],
            "labels": answer["input_ids"][0],
        }

    @torch.no_grad()
    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The answer to each question."""
        module: Any = model.module
        text = self._tokens([self._question_prompt(example) for example in examples]).to(model.device)
        inputs = encoder_inputs(
            module,
            self.pixels([example.image for example in examples]).to(model.device),
            text["input_ids"],
        )
        image_tokens = inputs.shape[1] - text["input_ids"].shape[1]
        mask = nn.functional.pad(text["attention_mask"], (image_tokens, 0), value=1)
        tokens = module.t5_model.generate(inputs_embeds=inputs, attention_mask=mask, **generation.options())
        return decoded(self.tokenizer, tokens)

    def _question_prompt(self, example: Example) -> str:
        return replace(example, text=self.question(example.text)).worded(self.prompt)

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(
            list(texts), padding="longest", truncation=True, max_length=LONGEST, return_tensors="pt"
        )


@dataclass(frozen=True)
class LavisBlip2(LavisBlip2Options, LavisPretrained):
    """A BLIP-2 with T5."""

    in_float32 = ("ln_vision",)

    def __post_init__(self) -> None:
        check_prompt(self.prompt)

    def load(self, device: torch.device, selection: Selection) -> PrunableModel:
        """Load weights and tokenizer.

        Raises:
            UserError: if LAVIS or the weights are missing, the weights do not fit, or a tower is unknown.
        """
        require_lavis()
        from lavis.models.blip2_models.blip2_t5 import Blip2T5
        from transformers import T5TokenizerFast

        from ecoflap.models.families.lavis.modules import BareBlip2T5

        with torch.device("meta"):
            module = BareBlip2T5(self.architecture)
        if device.type == "meta":
            return prunable(self.name, module, None, answer_loss, selection)
        tokenizer = read_tokenizer(T5TokenizerFast, self.tokenizer)
        self.read(module, Blip2T5, device)
        module.t5_tokenizer = tokenizer
        interface = LavisBlip2Interface(tokenizer, self.architecture["image_size"], self.prompt)
        return prunable(self.name, module, tokenizer, answer_loss, selection, interface=interface)
