"""Options of vision-language models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ecoflap.models.loading.options import ANY_DTYPE, PretrainedOptions


@dataclass(frozen=True)
class VisionLanguageOptions(PretrainedOptions):
    """A vision-language model that writes text.

    Attributes:
        prompt: template of a question, with one ``{}``; null for the processor's chat template.
        brief: text added after each question to ask for a one-word answer, but not in chats, nor in
            task=lmms_eval; null for none.
        chat: options of the chat template, such as ``{enable_thinking: false}``; unused with a prompt.
        images: options of the image processor, such as ``{do_image_splitting: false}``.
        loss: answer, or a function by its dotted path.
    """

    name: str = "vlm"
    prompt: str | None = None
    brief: str | None = None
    chat: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    loss: str = "answer"


@dataclass(frozen=True)
class LlavaSmolLM2Options:
    """A real ViT-S and the real SmolLM2, joined by a projector that was trained on Easy-VQA.

    Attributes:
        path: folder of the trained weights that join the towers.
        name: what logs and result files call it.
        prompt: template of a question, with one ``{}``.
        dtype: float32 (what auto means here), float16 or bfloat16.
        save: write the pruned checkpoint into the run's folder: true or dense, bitmask, coded.
    """

    path: str
    name: str = "llava_smollm2"
    prompt: str = "<image>{}"
    dtype: str = field(default="float32", metadata={"choices": ANY_DTYPE})
    save: bool | str = False
