"""BLIP-2 of transformers, with a T5 or a decoder-only language model; ``blip2_mini`` is a small one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ecoflap.data.batch import Batch, Sample
from ecoflap.data.example import Example, Generation
from ecoflap.errors import UserError
from ecoflap.models.core.losses import IGNORED, find_loss, next_token_loss, token_loss
from ecoflap.models.core.pictures import Pixels, load_image
from ecoflap.models.core.prompts import check_prompt, decoded, generated_tokens
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.token_kinds import TokenKinds, declaring, placeholder_kinds, prepended_kinds
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.blip2.options import Blip2Options
from ecoflap.models.families.blip2.tower_transfer import transfer
from ecoflap.models.families.lavis.keys import read_lavis_checkpoint, to_lavis, to_transformers
from ecoflap.models.loading.loader import Pretrained, prunable
from ecoflap.models.loading.modes import require_loaded

log = logging.getLogger(__name__)


def decoder_only(module: Any) -> bool:
    """Whether the language model is a decoder alone, whose targets follow the prompt."""
    return bool(getattr(module.config, "use_decoder_only_language_model", False))


def answer_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """Cross-entropy of the answer or caption given image and prompt, the paper's BLIP-2 loss, [batch]."""
    labels = batch["labels"]
    if not decoder_only(module):
        with declaring(encoder=token_kinds(module, batch["input_ids"], None)):
            return token_loss(module(**batch).logits, labels)
    # Given labels, the model would compute a loss of its own over all tokens.
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with declaring(language=token_kinds(module, batch["input_ids"], labels)):
        logits = module(**inputs).logits
    return next_token_loss(logits, labels)


def token_kinds(module: nn.Module, input_ids: Tensor, labels: Tensor | None) -> TokenKinds:
    """The kinds of tokens: queries in the place of image tokens or, in old releases, in front of the text.

    Args:
        module: the model.
        input_ids: [batch, tokens].
        labels: -100 where a token is not a target, [batch, tokens]; None if another sequence has the answer.
    """
    kinds = placeholder_kinds(module, input_ids, labels)
    if kinds is not None and kinds.visual.any():
        return kinds
    config: Any = module.config
    return prepended_kinds(config.num_query_tokens, input_ids, labels)


class Blip2Interface:
    """Questions about pictures, and their answers."""

    sees = True

    def __init__(self, module: Any, processor: Any, prompt: str) -> None:
        self.module, self.processor, self.prompt = module, processor, prompt
        self.pixels = Pixels.of(processor.image_processor)

    def encode(self, example: Example) -> Sample:
        """Encode one question; labels are a text of their own for a T5, else follow the prompt."""
        inputs = self.processor(
            images=load_image(example.image), text=example.worded(self.prompt), return_tensors="pt"
        )
        sample = {name: tensor[0] for name, tensor in inputs.items()}
        tokenizer = self.processor.tokenizer
        if not decoder_only(self.module):
            return {**sample, "labels": tokenizer(example.target, return_tensors="pt")["input_ids"][0]}
        # A word of its own, and the line end that BLIP-2 was taught to stop with.
        target = torch.tensor(tokenizer(f" {example.target}\n", add_special_tokens=False)["input_ids"])
        input_ids = torch.cat([sample["input_ids"], target])
        labels = torch.cat([torch.full_like(sample["input_ids"], IGNORED), target])
        return {
            **sample,
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "labels": labels,
        }

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The answer to each question."""
        module: Any = model.module
        tokenizer, weight = self.processor.tokenizer, next(module.parameters())
        # A decoder-only model writes on from the last token, so padding has to come before the question.
        tokenizer.padding_side = "left" if decoder_only(module) else "right"
        texts = [example.worded(self.prompt) for example in examples]
        # The processor puts the image tokens into the text only when it is given an image; any one will do
        # for that.
        inputs = self.processor(
            images=load_image(examples[0].image), text=texts, padding=True, return_tensors="pt"
        ).to(weight.device)
        tokens = module.generate(
            pixel_values=self.pixels([example.image for example in examples]).to(weight),
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            **generation.options(),
        )
        answers = generated_tokens(tokens, inputs["input_ids"]) if decoder_only(module) else tokens
        return decoded(tokenizer, answers)


def take_lavis_weights(module: nn.Module, file: str) -> None:
    """Replace weights by those of a file in LAVIS' format.

    Raises:
        UserError: if the file belongs to another model.
    """
    state, own = to_transformers(read_lavis_checkpoint(file, "model.lavis_checkpoint")), module.state_dict()
    wrong = [name for name, tensor in state.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise UserError(
            f"model.lavis_checkpoint={file} does not fit model.path: {len(wrong)} weights are other ones"
            f" here, such as {wrong[0]}"
        )
    module.load_state_dict(state, strict=False)
    log.info("%s: %d of %d tensors replaced", file, len(state), len(own))


@dataclass(frozen=True)
class SavesLavis(PrunableModel):
    """A BLIP-2 that is saved in both formats."""

    @override
    def save(self, folder: Path) -> None:
        """Write what ``from_pretrained`` reads, and ``lavis.pth``."""
        super().save(folder)
        torch.save({"model": to_lavis(self.module.state_dict())}, folder / "lavis.pth")


@dataclass(frozen=True)
class Blip2(Blip2Options, Pretrained):
    """A BLIP-2."""

    classes = ("Blip2Config", "Blip2ForConditionalGeneration", "Blip2Processor")

    def __post_init__(self) -> None:
        check_prompt(self.prompt)

    @property
    def in_lavis_format(self) -> bool:
        """Whether its checkpoints have a dense file of LAVIS."""
        return self.save_lavis

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its processor, which may be None.

        Raises:
            UserError: if there is no such loss or tower, LAVIS has no such model, or weights to take from
                elsewhere don't fit.
        """
        loss = find_loss(self.loss, {"answer": answer_loss})
        interface = Blip2Interface(module, processor, self.prompt) if processor is not None else None
        if self.save_lavis and decoder_only(module):
            raise UserError(
                "model.save_lavis=true writes BLIP-2 with a T5, and this one has a decoder-only language"
                " model; leave it out"
            )
        require_loaded(self, "lavis_checkpoint", "vision_from", "language_from")
        if not next(module.parameters()).is_meta:
            if self.lavis_checkpoint is not None:
                take_lavis_weights(module, self.lavis_checkpoint)
            if self.vision_from is not None:
                transfer(module, self.vision_from, "vision_model", "model.vision_from")
            if self.language_from is not None:
                transfer(module, self.language_from, "language_model", "model.language_from")
        model = prunable(self.name, module, processor, loss, selection, self.towers, interface)
        return SavesLavis(**vars(model)) if self.save_lavis else model
