"""Vision-language models that read a picture through queries or cross-attention."""

from __future__ import annotations

from ecoflap.models.families.vlm.vlm import answer_loss
from tests.zoo.architecture import IMAGE_TOKEN, Architecture
from tests.zoo.parts import ID, INDEX, OPT, QFORMER, SPREAD, T5, text, vision, vision_language
from tests.zoo.pictures import instructblip_sample, kosmos_sample, mllama_sample, pixels, seq2seq_sample
from tests.zoo.small import GROUPED, VISION

QUERIES = [
    vision_language(
        "idefics2",
        "Idefics2",
        {
            "vision_config": vision(),
            "text_config": text("mistral"),
            **ID,
            "perceiver_config": {
                "hidden_size": 32,
                "resampler_n_latents": 3,
                "resampler_depth": 2,
                "resampler_n_heads": 4,
                "num_key_value_heads": 2,
                "resampler_head_dim": 8,
            },
        },
        pixels(3, 1, 1, 3, 16, 16),
    ),
    vision_language(
        "aria",
        "Aria",
        {
            "vision_config": vision("idefics3_vision"),
            "text_config": text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            **INDEX,
            "projector_patch_to_query_dict": {"4": 3},
            "vision_feature_layer": -1,
        },
        pixels(3),
    ),
    vision_language(
        "mllama",
        "Mllama",
        {
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_global_layers": 2,
                "attention_heads": 4,
                "intermediate_size": 48,
                "image_size": 16,
                "patch_size": 8,
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
                "intermediate_layers_indices": [0, 1],
                "vision_output_dim": 96,
            },
            "text_config": {
                **GROUPED,
                "num_hidden_layers": 3,
                "cross_attention_layers": [1],
                "dropout": 0.0,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            "image_token_index": IMAGE_TOKEN,
        },
        mllama_sample,
    ),
    Architecture(
        "blip-2 (t5)",
        "vision-language",
        "Blip2ForConditionalGeneration",
        answer_loss,
        {
            "vision_config": {**VISION, **SPREAD},
            "qformer_config": QFORMER,
            "text_config": T5,
            "num_query_tokens": 3,
            **INDEX,
        },
        seq2seq_sample(3),
        config="Blip2Config",
    ),
    vision_language(
        "instructblip",
        "InstructBlip",
        {
            "vision_config": {**VISION, **SPREAD},
            "qformer_config": QFORMER,
            "text_config": text("llama"),
            "num_query_tokens": 3,
            **INDEX,
        },
        instructblip_sample,
    ),
    vision_language(
        "kosmos-2",
        "Kosmos2",
        {
            "vision_config": vision(),
            "text_config": {
                "vocab_size": 64,
                "max_position_embeddings": 64,
                "embed_dim": 32,
                "layers": 2,
                "ffn_dim": 48,
                "attention_heads": 4,
                "dropout": 0.0,
                "attention_dropout": 0.0,
            },
            "latent_query_num": 3,
        },
        kosmos_sample,
    ),
    vision_language(
        "granite4_vision",
        "Granite4Vision",
        {
            "vision_config": vision(
                "siglip_vision_model", hidden_size=64, patch_size=4, vision_use_head=False
            ),
            "text_config": {**GROUPED, "num_hidden_layers": 6},
            **INDEX,
            "image_grid_pinpoints": [[16, 16]],
            "vision_feature_select_strategy": "full",
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[0, 0], [1, 1]],
            "spatial_target_layers": [2, 3, 4, 5],
            "qformer_config": {
                "model_type": "blip_2_qformer",
                "num_hidden_layers": 1,
                "intermediate_size": 48,
                "cross_attention_frequency": 1,
                "use_qformer_text_input": False,
            },
        },
        pixels(10, 1, 2, 3, 16, 16, image_sizes=[[16, 16]]),
    ),
    vision_language(
        "blip-2",
        "Blip2",
        {
            "vision_config": {**VISION, **SPREAD},
            "qformer_config": QFORMER,
            "text_config": OPT,
            "num_query_tokens": 3,
            **INDEX,
        },
        pixels(3),
    ),
]
