"""Vision-language models of transformers that write text: LLaVA, Qwen2.5-VL, SmolVLM, InternVL, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.losses import counting, find_loss, next_token_loss, token_loss
from ecoflap.models.core.prompts import check_prompt
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.token_kinds import declaring, placeholder_kinds
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.vlm.interface import VlmInterface
from ecoflap.models.families.vlm.joining import join_samples
from ecoflap.models.families.vlm.options import VisionLanguageOptions
from ecoflap.models.families.vlm.processor_inputs import writes_after_prompt
from ecoflap.models.families.vlm.real_patches import real_patches
from ecoflap.models.loading.loader import Pretrained, prunable

# Models that AutoModelForImageTextToText loads and that have no answer to take the loss of.
NO_ANSWER = {
    "diffusion_gemma": "fills blocks of random tokens by diffusion",
    "pi0": "steers a robot",
    "pi05": "steers a robot",
    "pp_formulanet": "doesn't make its decoder's input from labels",
}


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
    inputs = join_samples(module, batch)
    input_ids, labels = inputs.get("input_ids"), batch["labels"].flatten(0, 1)
    if not writes_after_prompt(module):
        with (
            counting(**real_patches(module, inputs)),
            declaring(encoder=placeholder_kinds(module, input_ids, None)),
        ):
            return token_loss(module(**inputs).logits, labels)
    # With labels, most models would compute a loss of their own over all tokens. In some releases, a
    # PaliGemma attends to later tokens of the answer unless it receives them.
    if kind != "paligemma":
        del inputs["labels"]
    kinds = placeholder_kinds(module, input_ids, labels)
    with counting(**real_patches(module, inputs)), declaring(language=kinds):
        logits = module(**inputs).logits
    return next_token_loss(logits[:, -labels.shape[1] :], labels)  # GIT's begin with those of the picture


@dataclass(frozen=True)
class VisionLanguage(VisionLanguageOptions, Pretrained):
    """A vision-language model."""

    classes = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")

    def __post_init__(self) -> None:
        if self.prompt is not None:
            check_prompt(self.prompt)

    @override
    def from_module(self, module: nn.Module, processor: Any, selection: Selection) -> PrunableModel:
        """Wrap a transformers model in memory and its processor, which may be None.

        Raises:
            UserError: if there is no such loss, tower or known prompt, or the prompt doesn't show a picture.
        """
        loss = find_loss(self.loss, {"answer": answer_loss})
        interface = (
            VlmInterface(module, processor, self.prompt, self.brief, self.chat, self.images)
            if processor is not None
            else None
        )
        if interface is not None and self.prompt is not None:
            interface.check_prompt()
        return prunable(self.name, module, processor, loss, selection, self.towers, interface)
