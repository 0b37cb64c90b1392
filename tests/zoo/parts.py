"""Configs of the models inside vision-language models, and of the whole."""

from __future__ import annotations

from typing import Any

from ecoflap.models.families.vlm.vlm import answer_loss
from tests.zoo.architecture import IMAGE_TOKEN, Architecture, MakeSample
from tests.zoo.pictures import VIDEO_TOKEN, VISION_END, VISION_START
from tests.zoo.small import GROUPED, VISION


def text(kind: str, **more: Any) -> dict[str, Any]:
    """The config of a language model inside."""
    return {"model_type": kind, **GROUPED, **more}


def vision(kind: str | None = None, **more: Any) -> dict[str, Any]:
    """The config of an image tower inside."""
    return {**({"model_type": kind} if kind else {}), **VISION, **more}


ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
MROPE = {"rope_parameters": ROPE, "rope_scaling": {"type": "mrope", **ROPE}}
TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
PATCHED = {
    "depth": 2,
    "num_heads": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
}
DEEPSTACK = {**PATCHED, "num_position_embeddings": 16, "depth": 3, "deepstack_visual_indexes": [0, 1]}
FEATURES = 3 * 2 * 4 * 4
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
INDEX = {"image_token_index": IMAGE_TOKEN}
ID = {"image_token_id": IMAGE_TOKEN}
LAST = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
AUDIO = {
    "num_mel_bins": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "d_model": 32,
    "max_source_positions": 16,
    "n_window": 4,
    "output_dim": 32,
}
OMNI = {"audio_token_id": 59, "audio_start_token_id": 58, "user_token_id": 57, **TOKENS}
OMNI_INDEX = {
    "audio_token_index": 59,
    "audio_start_token_id": 58,
    "audio_end_token_id": 57,
    "user_token_id": 56,
    "vision_start_token_id": VISION_START,
    "image_token_index": IMAGE_TOKEN,
    "video_token_index": VIDEO_TOKEN,
}
TYPES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
QFORMER = {
    "vocab_size": 64,
    "intermediate_size": 48,
    "encoder_hidden_size": 32,
    "cross_attention_frequency": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SPREAD = {"initializer_range": 0.05}
T5 = {
    "model_type": "t5",
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 64,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "pad_token_id": 0,
}


def glm(**more: Any) -> dict[str, Any]:
    """The config of a GLM-4V."""
    return {
        "text_config": {**GROUPED, **MROPE, "partial_rotary_factor": 1.0, **more},
        **TOKENS,
        "vision_config": {**PATCHED, "image_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
    }


def vision_language(name: str, model: str, settings: dict[str, Any], sample: MakeSample) -> Architecture:
    """One that transformers calls by its name ``ForConditionalGeneration``."""
    return Architecture(
        name, "vision-language", f"{model}ForConditionalGeneration", answer_loss, settings, sample
    )
