"""Tiny models whose blocks aren't a plain chain: something is added to the hidden states between them, or
they share key-value states.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language import causal_lm
from ecoflap.models.families.vlm import vlm
from ecoflap.models.loading.loader import prunable
from tests import tiny

WIDE = {"initializer_range": 0.3}  # what is added between blocks shall matter
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_TEXT = {
    **tiny.LLAMA,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_hidden_layers": 4,
    "rope_parameters": ROPE,
    **WIDE,
}
QWEN_VISION = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 2,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [
        0,
        1,
    ],  # the features of two blocks are added behind the first two of the language model
    **WIDE,
}
QWEN_TOKENS = {
    "image_token_id": tiny.IMAGE_TOKEN,
    "video_token_id": 38,
    "vision_start_token_id": 37,
    "vision_end_token_id": 36,
}
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "mlp_only_layers": [1],
    **QWEN_TEXT,
}
AUDIO = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 8,
    "output_dim": 16,
}
AUDIO |= {"downsample_hidden_size": 4}
GRANITE = {
    "text_config": {**tiny.LLAMA, "num_key_value_heads": 1, "num_hidden_layers": 5, **WIDE},
    "vision_config": {
        **tiny.VISION,
        "patch_size": 2,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "model_type": "clip_vision_model",
    },
    "qformer_config": {
        "model_type": "blip_2_qformer",
        "num_hidden_layers": 1,
        "intermediate_size": 24,
        "cross_attention_frequency": 1,
    },
    "image_token_index": tiny.IMAGE_TOKEN,
    "image_grid_pinpoints": [[8, 8]],
    "downsample_rate": "1/2",
    "deepstack_layer_map": [
        [2, 0],
        [1, 1],
    ],  # the first block reads the end of the vision tower, the second its middle
    "spatial_vision_layer": -1,
    "spatial_target_layers": [2, 3, 4, 4],
}
# Four blocks compute keys and values, two of them for the two at the end.
SHARING = {
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "head_dim": 8,
}
GEMMA = {
    **tiny.LLAMA,
    "num_key_value_heads": 1,
    "vocab_size_per_layer_input": tiny.VOCABULARY,
    "hidden_size_per_layer_input": 4,
    **SHARING,
}
GEMMA3N = {
    "laurel_rank": 4,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
    "sliding_window": 3,
}

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "qwen3_vl": lambda: hf.Qwen3VLForConditionalGeneration(
        hf.Qwen3VLConfig(text_config=QWEN_TEXT, vision_config=QWEN_VISION, **QWEN_TOKENS)
    ),
    "qwen3_vl_moe": lambda: hf.Qwen3VLMoeForConditionalGeneration(
        hf.Qwen3VLMoeConfig(text_config=MOE, vision_config=QWEN_VISION, **QWEN_TOKENS)
    ),
    "qwen3_omni": lambda: hf.Qwen3OmniMoeThinkerForConditionalGeneration(
        hf.models.qwen3_omni_moe.configuration_qwen3_omni_moe.Qwen3OmniMoeThinkerConfig(
            audio_config=AUDIO, text_config=MOE, vision_config=QWEN_VISION, audio_token_id=35, **QWEN_TOKENS
        )
    ),
    "granite4_vision": lambda: hf.Granite4VisionForConditionalGeneration(hf.Granite4VisionConfig(**GRANITE)),
    "llava_of_two_depths": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**tiny.VISION),
            text_config=hf.LlamaConfig(num_key_value_heads=1, **tiny.LLAMA),
            image_token_index=tiny.IMAGE_TOKEN,
            vision_feature_layer=[-2, -1],
        )
    ),
    "gemma3n": lambda: hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**GEMMA, **GEMMA3N)),
    "gemma4": lambda: hf.Gemma4ForCausalLM(hf.Gemma4TextConfig(**GEMMA, global_head_dim=8)),
}
SHARED_STATES = ["gemma3n", "gemma4"]


def build(family: str, dense: str = "audio") -> PrunableModel:
    """The model, the same each time; a test that asks for one that the installed transformers lacks is
    skipped.

    Args:
        family: one of the builders.
        dense: pattern of the paths of towers that are not pruned; there are no sounds in the samples.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            module = BUILDERS[family]()
        except (ImportError, AttributeError):
            pytest.skip(f"{family} is not in the installed transformers")
        for parameter in module.parameters():
            if not parameter.any():  # scales and routers that start at zero, where nothing flows
                nn.init.normal_(parameter, std=0.3)
    loss = causal_lm.language_loss if family in SHARED_STATES else vlm.answer_loss
    model = prunable(family, module.eval(), None, loss, Selection())
    return replace(
        model, towers=tuple(tower for tower in model.every_tower if not re.search(dense, tower.path))
    )


def samples(family: str, lengths: tuple[int, ...] = (5, 7, 5), seed: int = 1) -> CalibrationSet:
    """One sample per length."""
    generator = torch.Generator().manual_seed(seed)
    return CalibrationSet("tiny", tuple(_sample(family, length, generator) for length in lengths))


def _sample(family: str, length: int, generator: torch.Generator) -> Sample:
    tokens = torch.randint(3, 36, (length,), generator=generator)
    if family in SHARED_STATES:
        return {"input_ids": tokens}
    places, inputs = IMAGES[family](generator)
    input_ids = torch.cat([torch.full((places,), tiny.IMAGE_TOKEN), tokens])[None]
    if family.startswith("qwen3"):
        inputs["mm_token_type_ids"] = (input_ids == tiny.IMAGE_TOKEN).long()
    labels = torch.where(input_ids == tiny.IMAGE_TOKEN, -100, input_ids)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels, **inputs}


def _patches(generator: torch.Generator) -> tuple[int, dict[str, Any]]:
    """4 x 4 patches of 2 frames of 2 x 2 pixels, of which 2 x 2 make a token."""
    return 4, {
        "pixel_values": torch.randn(16, 24, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def _pixels(generator: torch.Generator) -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=generator)


IMAGES: dict[str, Callable[[torch.Generator], tuple[int, dict[str, Any]]]] = {
    "qwen3_vl": _patches,
    "qwen3_vl_moe": _patches,
    "qwen3_omni": _patches,
    "granite4_vision": lambda generator: (
        GRANITE_TOKENS,
        {
            "pixel_values": torch.cat([_pixels(generator), _pixels(generator)])[None],
            "image_sizes": torch.tensor([[8, 8]]),
        },
    ),
    "llava_of_two_depths": lambda generator: (4, {"pixel_values": _pixels(generator)}),
}
GRANITE_TOKENS = 10
