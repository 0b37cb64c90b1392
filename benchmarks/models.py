"""The models and inputs of the rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.models.families.language.smollm2 import SmolLM2
from ecoflap.models.loading.loader import prunable


def device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def smollm2() -> PrunableModel:
    """SmolLM2 itself."""
    return SmolLM2().load(device(), Selection())


def only_blocks(model: PrunableModel, indices: list[int]) -> PrunableModel:
    """The whole model, of which only some blocks are to be scored."""
    tower = model.towers[0]
    blocks = tuple(
        block if index in indices else replace(block, layers=()) for index, block in enumerate(tower.blocks)
    )
    return replace(model, towers=(replace(tower, blocks=blocks),))


def llama(width: int, depth: int, vocabulary: int = 256) -> PrunableModel:
    """A random LLaMA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    return prunable("llama", LlamaForCausalLM(config).to(device()), None, language_loss, Selection())


def tokens(samples: int, length: int, vocabulary: int) -> CalibrationSet:
    """Random token rows; no cost depends on which."""
    rows = torch.randint(5, vocabulary, (samples, length), generator=torch.Generator().manual_seed(0))
    return CalibrationSet("random tokens", tuple({"input_ids": row} for row in rows))


class Dense:
    """The dense weights, put back between two runs."""

    def __init__(self, model: PrunableModel) -> None:
        self.weights: dict[str, Tensor] = {
            layer.name: layer.weight.detach().clone() for layer in model.layers
        }

    @torch.no_grad()
    def restore(self, model: PrunableModel) -> None:
        for layer in model.layers:
            layer.weight.copy_(self.weights[layer.name])
