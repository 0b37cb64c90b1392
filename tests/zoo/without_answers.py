"""Models of transformers' image-text-to-text list that can't be asked how likely an answer is."""

from __future__ import annotations

from ecoflap.data.batch import Sample
from ecoflap.models.families.vlm.vlm import answer_loss
from tests.zoo.architecture import Architecture, Draw
from tests.zoo.documents import SAM
from tests.zoo.parts import ID, INDEX, TYPES, text, vision
from tests.zoo.pictures import gemma4_sample, pixels
from tests.zoo.small import GROUPED


def formula_sample(draw: Draw) -> Sample:
    """A picture of a formula, and the formula."""
    return {"pixel_values": draw.normal(1, 3, 64, 64), "labels": draw.tokens()[None]}


def robot(name: str) -> Architecture:
    """A model that steers a robot."""
    return Architecture(
        name,
        "vision-language",
        f"{name.upper()}ForConditionalGeneration",
        answer_loss,
        {
            "vlm_config": {
                "model_type": "paligemma",
                "vision_config": vision("siglip_vision_model", vision_use_head=False, projection_dim=32),
                "text_config": text("gemma"),
                **INDEX,
                "projection_dim": 32,
            },
            "dit_config": text("gemma"),
            "chunk_size": 2,
        },
        pixels(4),
    )


WITHOUT_ANSWERS = [
    Architecture(
        "diffusion_gemma",
        "vision-language",
        "DiffusionGemmaForBlockDiffusion",
        answer_loss,
        {
            "text_config": {
                **GROUPED,
                **TYPES,
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 24,
            },
            "vision_config": vision(
                head_dim=8,
                num_key_value_heads=4,
                pooling_kernel_size=2,
                position_embedding_size=64,
                patch_size=4,
            ),
            **ID,
            "canvas_length": 8,
        },
        gemma4_sample,
    ),
    robot("pi0"),
    robot("pi05"),
    Architecture(
        "pp_formulanet",
        "vision-language",
        "PPFormulaNetForConditionalGeneration",
        answer_loss,
        {
            "text_config": {
                "vocab_size": 64,
                "max_position_embeddings": 64,
                "decoder_layers": 2,
                "decoder_ffn_dim": 48,
                "decoder_attention_heads": 4,
                "d_model": 32,
                "pad_token_id": 0,
            },
            "vision_config": {
                **SAM,
                "post_conv_in_channels": 16,
                "post_conv_out_channels": 32,
                "post_conv_mid_channels": 16,
                "decoder_hidden_size": 32,
            },
        },
        formula_sample,
    ),
]
