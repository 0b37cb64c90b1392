"""Samples with a picture, as the processor of a vision-language model gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ecoflap.data.batch import Sample
from tests.zoo.architecture import IMAGE_TOKEN, Draw, MakeSample

VIDEO_TOKEN, VISION_START, VISION_END = 61, 60, 63


def behind_picture(draw: Draw, count: int, *parts: Tensor, end: Sequence[int] = ()) -> Sample:
    """Image tokens, those that end the picture, and a text, [1, tokens], of which the text is the answer."""
    ending = torch.tensor(end, dtype=torch.long)
    tokens = torch.cat([*parts, torch.full((count,), IMAGE_TOKEN), ending, draw.tokens()])[None]
    labels = torch.where((tokens == IMAGE_TOKEN) | (tokens >= VISION_START), -100, tokens)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def pixels(count: int, *shape: int, **more: Any) -> MakeSample:
    """Samples whose picture takes ``count`` tokens and is a tensor of a shape."""
    return lambda draw: {
        **behind_picture(draw, count),
        "pixel_values": draw.normal(*(shape or (1, 3, 16, 16))),
        **{name: torch.tensor(value) for name, value in more.items()},
    }


def patches(features: int, grid: tuple[int, int] = (4, 4), merge: int = 2, types: bool = True) -> MakeSample:
    """Samples whose picture is a row of patches, merged 2 x 2, as in the Qwen-VL line."""

    def sample(draw: Draw) -> Sample:
        count = grid[0] * grid[1] // merge**2
        result = behind_picture(draw, count, torch.tensor([VISION_START]))
        tokens = result["input_ids"]
        result |= {
            "pixel_values": draw.normal(grid[0] * grid[1], features),
            "image_grid_thw": torch.tensor([[1, *grid]]),
        }
        return {**result, "mm_token_type_ids": (tokens == IMAGE_TOKEN).long()} if types else result

    return sample


def ernie_sample(draw: Draw) -> Sample:
    """What says of each token whether experts of text or of pictures read it, behind those of ``patches``."""
    sample = patches(3 * 4 * 4)(draw)
    seen = torch.isin(sample["input_ids"], torch.tensor([IMAGE_TOKEN, VISION_START]))
    return {**sample, "moe_mm_token_type_ids": seen.long()}


def paligemma_sample(draw: Draw) -> Sample:
    sample = pixels(4)(draw)
    return {**sample, "token_type_ids": (sample["labels"] != -100).long()}


def gemma3_sample(draw: Draw) -> Sample:
    sample = pixels(1)(draw)
    return {**sample, "token_type_ids": (sample["input_ids"] == IMAGE_TOKEN).long()}


def instructblip_sample(draw: Draw) -> Sample:
    question = draw.tokens(4)[None]
    return {
        **pixels(3)(draw),
        "qformer_input_ids": question,
        "qformer_attention_mask": torch.ones_like(question),
    }


def mllama_sample(draw: Draw) -> Sample:
    sample = behind_picture(draw, 1)
    tokens = sample["input_ids"].shape[1]
    return {
        **sample,
        "pixel_values": draw.normal(1, 1, 1, 3, 16, 16),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(1, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(1, tokens, 1, 1, dtype=torch.long),
    }


def lfm2_sample(draw: Draw) -> Sample:
    return {
        **pixels(4, 1, 16, 192)(draw),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    }


def gemma4_sample(draw: Draw) -> Sample:
    grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), dim=-1).flatten(0, 1)
    sample = pixels(4, 1, 16, 48)(draw)
    return {
        **sample,
        "image_position_ids": grid[None],
        "mm_token_type_ids": (sample["input_ids"] == IMAGE_TOKEN).long(),
    }


def paddleocr_sample(draw: Draw) -> Sample:
    sample = patches(48)(draw)
    return {**sample, "pixel_values": draw.normal(16, 3, 4, 4)}


def kosmos_sample(draw: Draw) -> Sample:
    sample = pixels(3)(draw)
    return {**sample, "image_embeds_position_mask": (sample["input_ids"] == IMAGE_TOKEN).long()}


def seq2seq_sample(count: int) -> MakeSample:
    """A question about a picture, and the answer apart."""
    return lambda draw: {**pixels(count)(draw), "labels": draw.tokens(5)[None]}
