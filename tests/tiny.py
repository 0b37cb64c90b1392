"""Tiny random models of every family and calibration data for them, each built in milliseconds."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
)

from ecoflap.calibrate.samples import CalibrationSet, Sample
from ecoflap.models.blip2 import answer_loss
from ecoflap.models.causal_lm import language_loss
from ecoflap.models.loading import Selection, prunable
from ecoflap.models.prunable import PrunableModel

torch.set_num_threads(1)  # at this size threads wait for each other, and on a busy machine for a hundred times the work

VOCABULARY = 40
IMAGE_TOKEN = 39
QUERIES = 3
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"vocab_size": VOCABULARY, "intermediate_size": 24, "max_position_embeddings": 32, "pad_token_id": 0, **SIZE}
OPT = {"vocab_size": VOCABULARY, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32, "dropout": 0.0, **SIZE}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}

LANGUAGE: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **LLAMA)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, tie_word_embeddings=True, **LLAMA)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=3, **LLAMA)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
}
VISION_LANGUAGE: dict[str, Callable[[], nn.Module]] = {
    "blip2_t5": lambda: blip2(T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5)),
    "blip2_t5_relu": lambda: blip2(T5Config(feed_forward_proj="relu", **T5)),
    "blip2_opt": lambda: blip2(OPTConfig(**OPT)),
}
FAMILIES = [*LANGUAGE, *VISION_LANGUAGE]


def blip2(text: PreTrainedConfig) -> nn.Module:
    """A BLIP-2 around a language model. transformers starts its image tower at 1e-10 and its queries at zero, where nothing flows."""
    vision = {"intermediate_size": 24, "image_size": 8, "patch_size": 4, "initializer_range": 0.05, **SIZE}
    qformer = {"vocab_size": VOCABULARY, "intermediate_size": 24, "encoder_hidden_size": 16, "cross_attention_frequency": 2, **SIZE}
    config = Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text.to_dict(), num_query_tokens=QUERIES, image_token_index=IMAGE_TOKEN
    )
    return Blip2ForConditionalGeneration(config)


def build(family: str, towers: list[str] | None = None, skip_layers: tuple[str, ...] = (), seed: int = 0) -> PrunableModel:
    """The family's model, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = (LANGUAGE | VISION_LANGUAGE)[family]()
        with torch.no_grad():
            for parameter in module.parameters():  # away from 0 and 1, where biases, norms, queries and positions start
                parameter.add_(0.1 * torch.randn_like(parameter))
    loss = language_loss if family in LANGUAGE else answer_loss
    return prunable(family, module, None, loss, Selection(towers, list(skip_layers)))


def samples(family: str, lengths: tuple[int, ...] = (5, 7, 5, 7, 5), seed: int = 1) -> CalibrationSet:
    """One sample per length, of all the inputs that the family needs."""
    generator = torch.Generator().manual_seed(seed)
    return CalibrationSet("tiny", tuple(_sample(family, length, generator) for length in lengths))


def _sample(family: str, length: int, generator: torch.Generator) -> Sample:
    text = _tokens(length, generator)
    if family in LANGUAGE:
        return {"input_ids": text}
    input_ids = torch.cat([torch.full((QUERIES,), IMAGE_TOKEN), text])
    labels = torch.where(input_ids == IMAGE_TOKEN, -100, input_ids) if family == "blip2_opt" else _tokens(length - 2, generator)
    pixels = torch.randn(3, 8, 8, generator=generator)
    return {"pixel_values": pixels, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}


def _tokens(length: int, generator: torch.Generator) -> Tensor:
    return torch.randint(3, IMAGE_TOKEN, (length,), generator=generator)
