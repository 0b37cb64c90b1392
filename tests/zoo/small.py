"""Tiny configs: the same small number for every setting of one name, whatever the architecture."""

from __future__ import annotations

from typing import Any

VOCABULARY = 64
WIDTH = 32
LAYERS = 2

WIDTHS = (
    "hidden_size",
    "n_embd",
    "d_model",
    "dim",
    "embed_dim",
    "embedding_size",
    "word_embed_proj_dim",
    "lru_width",
)
WIDER = (
    "intermediate_size",
    "ffn_dim",
    "n_inner",
    "d_ff",
    "ffn_hidden_size",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "dff",
)
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "depth",
)
HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "num_encoder_attention_heads",
    "num_decoder_attention_heads",
    "swa_num_attention_heads",
)
HEAD_WIDTHS = (
    "head_dim",
    "d_kv",
    "kv_channels",
    "v_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "swa_head_dim",
    "global_head_dim",
)
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_source_positions",
    "max_target_positions",
    "original_max_position_embeddings",
)
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
EXPERT_WIDTHS = (
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "expert_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "expert_ffn_dim",
    "dense_intermediate_size",
)
DROPOUTS = (
    "attention_dropout",
    "dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "activation_dropout",
    "dropout_rate",
    "attention_dropout_prob",
    "encoder_layerdrop",
    "decoder_layerdrop",
)

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(WIDTHS, WIDTH),
    **dict.fromkeys(WIDER, 48),
    **dict.fromkeys(DEPTHS, LAYERS),
    **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(HEAD_WIDTHS, 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "index_head_dim"), 16),
    **dict.fromkeys(POSITIONS, 64),
    **dict.fromkeys(EXPERTS, 4),
    **dict.fromkeys(EXPERT_WIDTHS, 24),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(
        ("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "zero_expert_num"), 1
    ),
    **dict.fromkeys(
        ("sliding_window", "attention_window_size", "sliding_window_size", "index_topk", "window_size"), 4
    ),
    "index_n_heads": 2,
    # State-space and linear-attention layers; their heads and head widths multiply to twice the width.
    **dict.fromkeys(
        (
            "mamba_d_state",
            "state_size",
            "ssm_state_size",
            "mamba_dt_rank",
            "time_step_rank",
            "mamba_chunk_size",
            "chunk_size",
        ),
        8,
    ),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    "conv_L_cache": 3,
    "block_dim": WIDTH,
    "block_ff_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **dict.fromkeys(DROPOUTS, 0.0),
    "use_cache": False,
    "is_decoder": True,
    "image_size": 16,
    "patch_size": 8,
}

# One transformer inside another model, for configs that are handed on as they are.
HALVES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

GROUPED = {**HALVES, "num_key_value_heads": 2, "head_dim": 8}
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}


def small_config(config_class: Any, settings: dict[str, Any] | None = None) -> Any:
    """A tiny config of a class, with the settings of its own; those of a config inside it are a dict.

    It has a block of each type that the full model has.
    """
    own = dict(settings or {})
    known = config_class().to_dict()
    renamed = getattr(config_class, "attribute_map", {})
    values = {
        name: value
        for name, value in SMALL.items()
        if name in known and name not in renamed and not isinstance(known[name], list | tuple | dict)
    }
    config = config_class(**{**values, **own})
    types = list(dict.fromkeys(known.get("layer_types") or ()))
    if len(types) > len(set(config.layer_types or ()) if types else ()) and "layer_types" not in own:
        return config_class(**{**values, **own, "layer_types": types, "num_hidden_layers": len(types)})
    return config
