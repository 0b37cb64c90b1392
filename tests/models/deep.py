"""A tiny language model of more blocks than are loaded at a time, offloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ecoflap.data.batch import Batch
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import CausalLM
from ecoflap.models.offload.load import load_offloaded

BLOCKS = 5
TOKENS = torch.arange(2, 12).view(2, 5)
BATCH: Batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}


def deepened(source: Path, folder: Path) -> Path:
    """A copy of a checkpoint with five blocks, in several shards."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(source, num_hidden_layers=BLOCKS)
    config.layer_types = None
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="8KB")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def offloaded(folder: Path, kind: str, work: Path, device: str = "cpu") -> PrunableModel:
    """The model with its blocks where ``runtime.offload`` puts them."""
    return load_offloaded(CausalLM(path=str(folder)), torch.device(device), Selection(), kind, work)
