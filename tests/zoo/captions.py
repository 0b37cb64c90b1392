"""Models that write captions, or the text of a page, the encoder-decoders among them."""

from __future__ import annotations

from typing import Any

import torch

from ecoflap.data.batch import Sample
from ecoflap.models.families.vlm.vlm import answer_loss
from tests.zoo.architecture import Architecture, Draw, MakeSample
from tests.zoo.parts import OPT, QFORMER, vision, vision_language
from tests.zoo.pictures import IMAGE_TOKEN, behind_picture, instructblip_sample
from tests.zoo.small import GROUPED, HALVES

SEQ2SEQ = {"decoder_start_token_id": 1, "pad_token_id": 0}


def caption_sample(draw: Draw) -> Sample:
    """A picture and a text that holds no image tokens."""
    return {**behind_picture(draw, 0), "pixel_values": draw.normal(1, 3, 16, 16)}


def answer_sample(draw: Draw) -> Sample:
    """A picture, and what a decoder writes about it."""
    return {"pixel_values": draw.normal(1, 3, 16, 16), "labels": draw.tokens()[None]}


def flattened(count: int) -> Any:
    """Patches of 4 x 4 pixels, each behind its row and column, as Pix2Struct reads them."""
    return lambda draw: torch.cat(
        [torch.arange(count)[:, None] // 2, torch.arange(count)[:, None] % 2, draw.normal(count, 48)], dim=1
    )[None]


def pix2struct_sample(draw: Draw) -> Sample:
    return {
        "flattened_patches": flattened(4)(draw),
        "attention_mask": torch.ones(1, 4),
        "labels": draw.tokens()[None],
    }


def kosmos25_sample(draw: Draw) -> Sample:
    sample = behind_picture(draw, 3)
    mask = (sample["input_ids"] == IMAGE_TOKEN).long()
    return {**sample, "flattened_patches": flattened(4)(draw), "image_embeds_position_mask": mask}


def udop_sample(draw: Draw) -> Sample:
    """Words with the boxes that they stand in on a page, and the page."""
    words = draw.tokens()[None]
    corners = torch.rand(1, words.shape[1], 2, generator=draw.generator) / 2
    return {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "bbox": torch.cat([corners, corners + 0.3], dim=-1),
        "pixel_values": draw.normal(1, 3, 16, 16),
        "labels": draw.tokens(5)[None],
    }


def instructblipvideo_sample(draw: Draw) -> Sample:
    """A video of two frames, each read through three queries."""
    sample = instructblip_sample(draw)
    return {**sample, **behind_picture(draw, 6), "pixel_values": draw.normal(1, 2, 3, 16, 16)}


def idefics_sample(draw: Draw) -> Sample:
    """A text all of which attends to one picture."""
    sample = behind_picture(draw, 0)
    return {
        **sample,
        "pixel_values": draw.normal(1, 1, 3, 16, 16),
        "image_attention_mask": torch.ones(1, sample["input_ids"].shape[1], 1, dtype=torch.long),
    }


def protein_sample(draw: Draw) -> Sample:
    """A protein in the place of a picture."""
    protein = draw.tokens(6)[None]
    return {
        **behind_picture(draw, 0),
        "protein_input_ids": protein,
        "protein_attention_mask": torch.ones_like(protein),
    }


def captioner(name: str, model: str, settings: dict[str, Any], sample: MakeSample) -> Architecture:
    """One whose class isn't called ``ForConditionalGeneration``."""
    return Architecture(name, "vision-language", model, answer_loss, settings, sample)


CAPTIONS = [
    vision_language(
        "blip",
        "Blip",
        {
            "text_config": {
                **HALVES,
                "encoder_hidden_size": 32,
                "projection_dim": 16,
                "hidden_dropout_prob": 0.0,
                "sep_token_id": 2,
            },
            "vision_config": vision(projection_dim=16),
        },
        caption_sample,
    ),
    captioner("git", "GitForCausalLM", {"vision_config": vision()}, caption_sample),
    vision_language(
        "instructblipvideo",
        "InstructBlipVideo",
        {
            "vision_config": vision(),
            "qformer_config": QFORMER,
            "text_config": OPT,
            "num_query_tokens": 3,
            "video_token_index": IMAGE_TOKEN,
        },
        instructblipvideo_sample,
    ),
    captioner(
        "idefics",
        "IdeficsForVisionText2Text",
        {
            "vision_config": {
                "embed_dim": 32,
                "image_size": 16,
                "intermediate_size": 48,
                "patch_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
            "perceiver_config": {
                "use_resampler": True,
                "resampler_n_latents": 3,
                "resampler_depth": 2,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
            },
            "use_resampler": True,
            "alpha_initializer": "ones",
        },
        idefics_sample,
    ),
    vision_language(
        "kosmos-2.5",
        "Kosmos2_5",
        {
            "text_config": {
                "vocab_size": 64,
                "max_position_embeddings": 64,
                "embed_dim": 32,
                "layers": 2,
                "ffn_dim": 48,
                "attention_heads": 4,
                "dropout": 0.0,
                "pad_token_id": 0,
            },
            "vision_config": {
                "hidden_size": 32,
                "patch_embed_hidden_size": 48,
                "intermediate_size": 48,
                "head_dim": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_num_patches": 16,
            },
            "latent_query_num": 3,
        },
        kosmos25_sample,
    ),
    vision_language(
        "pix2struct",
        "Pix2Struct",
        {
            "text_config": {
                "vocab_size": 64,
                "hidden_size": 32,
                "d_kv": 8,
                "d_ff": 48,
                "num_layers": 2,
                "num_heads": 4,
                "dropout_rate": 0.0,
            },
            "vision_config": {
                "hidden_size": 32,
                "patch_embed_hidden_size": 48,
                "d_kv": 8,
                "d_ff": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "seq_len": 16,
            },
            "decoder_start_token_id": 0,
        },
        pix2struct_sample,
    ),
    vision_language(
        "udop", "Udop", {"max_2d_position_embeddings": 64, "decoder_start_token_id": 0}, udop_sample
    ),
    captioner(
        "vision-encoder-decoder",
        "VisionEncoderDecoderModel",
        {
            "encoder": vision("vit"),
            "decoder": {"model_type": "bert", **HALVES, "is_decoder": True, "add_cross_attention": True},
            **SEQ2SEQ,
        },
        answer_sample,
    ),
    captioner(
        "evolla",
        "EvollaForProteinText2Text",
        {
            **{name: value for name, value in GROUPED.items() if name != "head_dim"},
            "protein_encoder_config": {
                **HALVES,
                "vocab_size": 64,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            "aligner_ffn_mult": 2,
            "aligner_num_add_layers": 1,
            "aligner_attention_probs_dropout_prob": 0.0,
            "resampler_depth": 2,
            "resampler_dim_head": 8,
            "resampler_heads": 4,
            "resampler_num_latents": 3,
            "resampler_ff_mult": 2,
        },
        protein_sample,
    ),
]
