"""All architectures of the zoo, those that can't be compared, and those that every test run looks at."""

from __future__ import annotations

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.zoo import encoder_decoders
from tests.zoo.architecture import Architecture
from tests.zoo.captions import CAPTIONS
from tests.zoo.codebooks import CODEBOOKS
from tests.zoo.decoders import DECODERS
from tests.zoo.documents import DOCUMENTS
from tests.zoo.encoder_decoders import ENCODER_DECODERS
from tests.zoo.encoders import ENCODERS
from tests.zoo.expert_rows import EXPERT_ROWS
from tests.zoo.llava import LLAVA
from tests.zoo.native_resolution import NATIVE_RESOLUTION
from tests.zoo.patch_rows import PATCH_ROWS
from tests.zoo.queries import QUERIES
from tests.zoo.vision_language import WHOLE_PICTURES
from tests.zoo.without_answers import WITHOUT_ANSWERS


def _by_name(architectures: list[Architecture]) -> dict[str, Architecture]:
    """By ``model_type``; the decoder half of an encoder-decoder, which has the same one, by its class."""
    halves = {architecture.name for architecture in ENCODER_DECODERS}
    return {
        one.model if one.kind == "decoder" and one.name in halves else one.name: one for one in architectures
    }


VISION_LANGUAGE = [
    *LLAVA,
    *WHOLE_PICTURES,
    *PATCH_ROWS,
    *NATIVE_RESOLUTION,
    *EXPERT_ROWS,
    *QUERIES,
    *CODEBOOKS,
    *CAPTIONS,
    *DOCUMENTS,
    *WITHOUT_ANSWERS,
]
ARCHITECTURES = _by_name([*DECODERS, *ENCODER_DECODERS, *VISION_LANGUAGE, *ENCODERS])
NOT_COMPARED = encoder_decoders.NOT_COMPARED
NOT_BUILT = tuple(
    name
    for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if name not in {**ARCHITECTURES, **NOT_COMPARED}
)
# Those that `make test` compares: plain blocks, and most ways in which others differ from them.
SUBSET = (
    "llama",
    "gpt2",
    "gemma4_text",
    "BartForCausalLM",
    "xlm",
    "mixtral",
    "deepseek_v3",
    "mamba",
    "jamba",
    "zamba2",
    "rwkv",
    "t5",
    "switch_transformers",
    "llava",
    "blip-2",
    "vit",
    "clip",
)
