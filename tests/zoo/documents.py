"""Vision-language models that read pages, or pictures in several crops."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from ecoflap.data.batch import Sample
from ecoflap.models.families.vlm.vlm import answer_loss
from tests.zoo.architecture import IMAGE_TOKEN, Architecture, Draw, MakeSample
from tests.zoo.parts import ID, INDEX, TYPES, text, vision, vision_language
from tests.zoo.pictures import VIDEO_TOKEN, gemma3_sample, pixels
from tests.zoo.small import GROUPED

SAM = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 4,
    "window_size": 2,
    "global_attn_indexes": [1],
    "mlp_dim": 48,
    "mlp_ratio": 1.5,
}
EXPERTS = {
    **GROUPED,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "mlp_layer_types": ["dense", "sparse"],
}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}


def granite_sample(draw: Draw) -> Sample:
    """A picture of one tile."""
    return {**pixels(4, 1, 1, 3, 16, 16)(draw), "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}


def molmo_sample(draw: Draw) -> Sample:
    """A picture of one crop of 4 x 4 patches, pooled 2 x 2, of which the last token pools three."""
    pooled = torch.arange(16).reshape(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    pooled[-1, -1] = -1
    sample = {
        **pixels(4, 1, 16, 48)(draw),
        "image_token_pooling": pooled,
        "image_grids": torch.tensor([[2, 2, 0, 0]]),
        "image_num_crops": torch.tensor([1]),
    }
    return {**sample, "mm_token_type_ids": (sample["input_ids"] == IMAGE_TOKEN).long()}


def minicpm_sample(count: int) -> MakeSample:
    """A strip of 16 patches, from 4 rows of 4."""

    def sample(draw: Draw) -> Sample:
        result = pixels(count, 1, 3, 4, 64, target_sizes=[[4, 4]])(draw)
        return {**result, "mm_token_type_ids": (result["input_ids"] == IMAGE_TOKEN).long()}

    return sample


def minicpm(name: str, model: str, tokens: int, **more: Any) -> Architecture:
    """MiniCPM-V: 4 x 4 patches behind one another in a strip, merged inside the image tower and behind it."""
    settings = {
        "text_config": {"model_type": "qwen3_5_text", **GROUPED, **LINEAR},
        "vision_config": vision(patch_size=4, insert_layer_id=0),
        "insert_layer_id": 0,
        "image_size": 16,
        "patch_size": 4,
        **ID,
        "video_token_id": VIDEO_TOKEN,
        **more,
    }
    return vision_language(name, model, settings, minicpm_sample(tokens))


def give_image_outputs(module: Any) -> None:
    """The output of its language model that Llama 4 reads in transformers 5.24, and that isn't there."""
    if not transformers.__version__.startswith("5.24."):
        return
    module.language_model.register_forward_hook(lambda _, __, output: setattr(output, "image_outputs", None))


DOCUMENTS = [
    vision_language(
        "pp_chart2table",
        "GotOcr2",
        {"vision_config": SAM, "text_config": text("qwen2"), **INDEX},
        pixels(16, 1, 3, 64, 64),
    ),
    vision_language(
        "deepseek_ocr2",
        "DeepseekOcr2",
        {
            "vision_config": {
                "sam_config": {**SAM, "downsample_channels": [16, 32]},
                "encoder_config": GROUPED,
            },
            "text_config": EXPERTS,
            **ID,
        },
        pixels(145, 1, 3, 64, 64),
    ),
    vision_language(
        "unlimited_ocr",
        "UnlimitedOcr",
        {
            "vision_config": {
                "sam_config": {**SAM, "downsample_channels": [16, 32]},
                "encoder_config": vision(patch_size=4),
            },
            "text_config": {
                **EXPERTS,
                "layer_types": ["reference_sliding_attention"] * 2,
                "sliding_window": 4,
            },
            **ID,
        },
        pixels(21, 1, 3, 64, 64),
    ),
    vision_language(
        "granite_docling",
        "GraniteDocling",
        {
            "text_config": {name: value for name, value in GROUPED.items() if name != "head_dim"},
            "vision_config": vision(
                patch_size=4,
                scale_factor=2,
                out_hidden_size=32,
                deepstack_visual_indexes=[0],
                use_fine_route=False,
            ),
            **ID,
            "pad_token_id": 0,
        },
        granite_sample,
    ),
    minicpm("minicpmv4_6", "MiniCPMV4_6", 1),
    minicpm("minicpmv4_7", "MiniCPMV4_7", 1),
    minicpm("minicpm_ocr", "MiniCPMOcr", 4),
    vision_language(
        "molmo2",
        "Molmo2",
        {
            "vision_config": vision(
                image_size=[16, 16],
                patch_size=4,
                num_key_value_heads=4,
                head_dim=8,
                num_position_embeddings=16,
            ),
            "adapter_config": {
                "vision_feature_layer": [-1, 0],
                "hidden_size": 32,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 8,
                "intermediate_size": 48,
                "text_hidden_size": 32,
            },
            "text_config": {**GROUPED, "additional_vocab_size": 4},
            "image_patch_id": IMAGE_TOKEN,
        },
        molmo_sample,
    ),
    vision_language(
        "step3p7",
        "Step3p7",
        {
            "vision_config": vision(image_size=32, patch_size=4, mlp_ratio=1.5, max_position_embeddings=64),
            "text_config": {
                "model_type": "step3p5",
                **GROUPED,
                "num_experts_per_tok": 2,
                "n_routed_experts": 4,
                "mlp_layer_types": ["dense", "sparse"],
                **TYPES,
                "moe_intermediate_size": 24,
                "share_expert_dim": 24,
                "num_sliding_attention_heads": 4,
            },
            **ID,
        },
        pixels(4, 1, 3, 32, 32),
    ),
    vision_language(
        "shieldgemma2",
        "Gemma3",
        {
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "text_config": text("gemma3_text", **TYPES),
            "image_token_index": IMAGE_TOKEN,
            "mm_tokens_per_image": 1,
        },
        gemma3_sample,
    ),
    Architecture(
        "nemotron_h_omni",
        "vision-language",
        "NemotronH_Omni_Reasoning_V3",
        answer_loss,
        {
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "mlp_ratio": 1.5,
                "patch_size": 4,
                "image_size": 16,
                "max_img_size": 16,
                "patch_dim": 48,
                "video_patch_dim": 96,
                "video_temporal_patch_size": 2,
            },
            "text_config": {
                **GROUPED,
                "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
                "ssm_state_size": 8,
                "mamba_num_heads": 4,
                "mamba_head_dim": 16,
                "n_groups": 1,
                "chunk_size": 8,
                "n_routed_experts": 4,
                "moe_intermediate_size": 24,
                "moe_shared_expert_intermediate_size": 24,
            },
            "projector_hidden_size": 48,
            "vision_hidden_size": 32,
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": VIDEO_TOKEN,
            "audio_token_id": 59,
        },
        lambda draw: {**pixels(4, 16, 48)(draw), "image_grid_hw": torch.tensor([[4, 4]])},
    ),
    Architecture(
        "llama4",
        "vision-language",
        "Llama4ForConditionalGeneration",
        answer_loss,
        {
            "text_config": {
                **GROUPED,
                "intermediate_size_mlp": 48,
                "num_local_experts": 4,
                "num_experts_per_tok": 1,
            },
            "vision_config": vision(
                intermediate_size=128,
                patch_size=4,
                vision_output_dim=32,
                projector_input_dim=32,
                projector_output_dim=32,
                pixel_shuffle_ratio=0.5,
            ),
            **INDEX,
        },
        pixels(4),
        config="Llama4Config",
        prepare=give_image_outputs,
    ),
]
