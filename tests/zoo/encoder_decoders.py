"""Every encoder-decoder language model that transformers knows."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from ecoflap.data.batch import Sample
from ecoflap.models.families.language.seq2seq import continuation_loss
from tests.zoo.architecture import Architecture, Draw
from tests.zoo.small import GROUPED, HALVES, VISION

# In the list of encoder-decoders, but read sound.
SPEECH = (
    "audioflamingo3",
    "glmasr",
    "granite_speech",
    "granite_speech_plus",
    "moss_transcribe_diarize",
    "musicflamingo",
    "nemo_speechlm",
    "omniasr",
    "qwen2_audio",
    "qwen3_asr",
    "vibevoice_asr",
    "voxtral",
    "voxtral_realtime",
)
NOT_COMPARED = {"fsmt": "makes its decoder's input from the text, not from the labels"}
START = {"decoder_start_token_id": 0}
GEMMA = {
    **GROUPED,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "attention_dropout": 0.0,
    "dropout_rate": 0.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "bigbird_pegasus": {"attention_type": "original_full"},
    "encoder-decoder": {
        "encoder": {"model_type": "bert", **HALVES},
        "decoder": {"model_type": "bert", **HALVES, "is_decoder": True, "add_cross_attention": True},
        "decoder_start_token_id": 1,
        "pad_token_id": 0,
    },
    **dict.fromkeys(("longt5", "t5"), START),
    "led": {
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "fsmt": {"src_vocab_size": 64, "tgt_vocab_size": 64, "langs": ["en", "de"]},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 512},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 4},
    "prophetnet": {"ngram": 2, "num_buckets": 8, "relative_max_distance": 16},
    "seamless_m4t": {"speech_encoder_layers": 1, "t2u_encoder_layers": 1, "t2u_decoder_layers": 1},
    "switch_transformers": {
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "num_experts": 2,
        "expert_capacity": 512,
        **START,
    },
    "t5gemma": {"encoder": GEMMA, "decoder": GEMMA},
    "t5gemma2": {"encoder": {"text_config": GEMMA, "vision_config": VISION}, "decoder": GEMMA},
}


def translation_sample(draw: Draw) -> Sample:
    """A text and its continuation."""
    text = draw.tokens()
    return {
        "input_ids": text,
        "attention_mask": torch.ones_like(text),
        "labels": draw.tokens(draw.length - 2),
    }


def long_sample(draw: Draw) -> Sample:
    """One with enough tokens for every expert that a router of one choice may starve."""
    text = draw.tokens(4 * draw.length)
    return {
        "input_ids": text,
        "attention_mask": torch.ones_like(text),
        "labels": draw.tokens(4 * draw.length),
    }


SAMPLES = {"switch_transformers": long_sample}
ENCODER_DECODERS = [
    Architecture(
        name,
        "encoder-decoder",
        model,
        continuation_loss,
        SETTINGS.get(name, {}),
        SAMPLES.get(name, translation_sample),
    )
    for name, model in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items()
    if name not in (*SPEECH, *NOT_COMPARED)
]
