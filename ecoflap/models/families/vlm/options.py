"""Options of vision-language models."""

from __future__ import annotations

from dataclasses import dataclass

from ecoflap.models.loading.options import PretrainedOptions


@dataclass(frozen=True)
class VisionLanguageOptions(PretrainedOptions):
    """A vision-language model that writes text.

    Attributes:
        prompt: how a question is put to the model, with one ``{}``; null for the processor's chat template.
        brief: what is put behind each question, so that a model which likes to talk answers with a word; null
            for nothing.
        loss: answer, or a function by its dotted path.
    """

    name: str = "vlm"
    prompt: str | None = None
    brief: str | None = None
    loss: str = "answer"
