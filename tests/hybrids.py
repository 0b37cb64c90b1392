"""Tiny random language models whose blocks do more than hand on hidden states: shared key-value states, state
spaces, tied blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn

from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.families.language.causal_lm import language_loss
from ecoflap.models.loading.loader import prunable
from tests import tiny

SIZE = {"vocab_size": tiny.VOCABULARY, "hidden_size": 16}
HEADS = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
SHARING = {
    **{
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 4,
        "head_dim": 8,
    },
    **{
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": tiny.VOCABULARY,
        "num_hidden_layers": 4,
    },
}
ALTUP = {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4}
MAMBA = {"num_hidden_layers": 3, "state_size": 4, "time_step_rank": 4}
MAMBA2 = {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}
MIXERS = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 4,
    "mamba_chunk_size": 4,
    "num_hidden_layers": 3,
}
LAYERS = ["mamba", "hybrid", "mamba", "hybrid"]
EXPERTS = {
    "num_experts": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
}
ZAMBA2 = {
    "num_mem_blocks": 1,
    "mamba_d_state": 4,
    "n_mamba_heads": 4,
    "mamba_headdim": 8,
    "mamba_ngroups": 1,
    "chunk_size": 4,
    "adapter_rank": 4,
}

BUILD: dict[str, Callable[[], nn.Module]] = {
    "gemma3n": lambda: hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**SIZE, **HEADS, **SHARING, **ALTUP)),
    "gemma4": lambda: hf.Gemma4ForCausalLM(
        hf.Gemma4TextConfig(**SIZE, **HEADS, **SHARING, global_head_dim=8)
    ),
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**SIZE, **MAMBA)),
    "falcon_mamba": lambda: hf.FalconMambaForCausalLM(hf.FalconMambaConfig(**SIZE, **MAMBA)),
    "mamba2": lambda: hf.Mamba2ForCausalLM(hf.Mamba2Config(**SIZE, **MAMBA2, num_hidden_layers=3)),
    "jamba": lambda: hf.JambaForCausalLM(
        hf.JambaConfig(
            **SIZE,
            **HEADS,
            **EXPERTS,
            num_hidden_layers=3,
            mamba_d_state=4,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        )
    ),
    "bamba": lambda: hf.BambaForCausalLM(hf.BambaConfig(**SIZE, **HEADS, **MIXERS, attn_layer_indices=[1])),
    "falcon_h1": lambda: hf.FalconH1ForCausalLM(
        hf.FalconH1Config(**SIZE, **HEADS, **MIXERS, mamba_d_ssm=32, head_dim=8)
    ),
    "recurrent_gemma": lambda: hf.RecurrentGemmaForCausalLM(
        hf.RecurrentGemmaConfig(
            **SIZE,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=48,
            lru_width=16,
            attention_window_size=8,
            pad_token_id=0,
        )
    ),
    "zamba2": lambda: hf.Zamba2ForCausalLM(
        hf.Zamba2Config(
            **SIZE,
            **HEADS | {"num_key_value_heads": 2},
            **ZAMBA2,
            num_hidden_layers=4,
            layers_block_type=LAYERS,
        )
    ),
}
TIED = ["zamba2"]  # whose blocks share weights
EVERY = [name for name in BUILD if name not in TIED]
UNCALLED = {
    "mamba": ["dt_proj"],
    "falcon_mamba": ["dt_proj"],
    "jamba": ["dt_proj"],
}  # weights that the mixer uses by itself


def build(name: str, skip_layers: list[str] | None = None) -> PrunableModel:
    """The same model each time."""
    if int(hf.__version__.split(".")[0]) < 5:
        pytest.skip(f"transformers {hf.__version__} has not all of them, or names their settings otherwise")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = BUILD[name]()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return prunable(name, module, None, language_loss, Selection(None, skip_layers or []))
