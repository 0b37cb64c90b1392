"""Options of the models of LAVIS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ecoflap.models.loading.options import ANY_DTYPE


@dataclass(frozen=True)
class LavisPretrainedOptions:
    """A model of LAVIS.

    Attributes:
        model_type: LAVIS' name of the weights that it downloads.
        checkpoint: a file in LAVIS' format to read instead, such as a pruned model; then only the tokenizer
            is downloaded.
        tokenizer: hub id or folder of the tokenizer.
        architecture: sizes of the model, so that ``inspect`` needs no download.
        name: what logs and result files call it.
        dtype: float32 (what auto means here: LAVIS mixes precisions), float16 or bfloat16.
        save: write the pruned checkpoint into the run's folder.
    """

    model_type: str
    tokenizer: str
    checkpoint: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    name: str = "lavis"
    dtype: str = field(default="float32", metadata={"choices": ANY_DTYPE})
    save: bool | str = False


@dataclass(frozen=True)
class LavisBlip2Options(LavisPretrainedOptions):
    """A BLIP-2 with T5 of LAVIS.

    Attributes:
        prompt: template of a question, with one ``{}``.
    """

    name: str = "blip2_lavis"
    prompt: str = "Question: {} Short answer:"


@dataclass(frozen=True)
class LavisNlvrOptions(LavisPretrainedOptions):
    """A BLIP-NLVR of LAVIS."""

    name: str = "blip_nlvr"
