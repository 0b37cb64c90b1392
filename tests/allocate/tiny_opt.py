"""A tiny OPT whose weights are drawn here, as released code can run on it too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.models.loading.loader import prunable

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "ffn_dim": 32,
    "word_embed_proj_dim": 16,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "dropout": 0.0,
    "activation_function": "gelu",  # no unit is dead on all tokens
}


def opt_model(blocks: int = 4) -> PrunableModel:
    config = OPTConfig(num_hidden_layers=blocks, **SIZES)
    module = OPTForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * drawn if "norm.weight" in name else 0.3 * drawn)
    return prunable("opt", module, None, language_loss, Selection())


def rows(count: int = 8) -> Tensor:
    """Token ids, [rows, tokens]."""
    return torch.randint(3, 40, (count, 12), generator=torch.Generator().manual_seed(12))


def calibration(count: int = 8) -> CalibrationSet:
    return CalibrationSet("rows", tuple({"input_ids": row} for row in rows(count)))
