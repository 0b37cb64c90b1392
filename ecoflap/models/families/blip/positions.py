"""Position embeddings of image towers for images of another size than the checkpoint's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ecoflap.errors import UserError


def resized_positions(positions: Tensor, tokens: int) -> Tensor:
    """Position embeddings for images of another size, resized bicubically; the class token's stays the same.

    Args:
        positions: [1, 1 + side^2, features].
        tokens: number of tokens after resizing, 1 + side^2.

    Returns:
        [1, tokens, features].
    """
    if positions.shape[1] == tokens:
        return positions
    sides = [int((count - 1) ** 0.5) for count in (positions.shape[1], tokens)]
    grid = positions[:, 1:].float().unflatten(1, (sides[0], sides[0])).permute(0, 3, 1, 2)
    resized = interpolate(grid, size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    rows = resized.flatten(2).transpose(1, 2)
    return torch.cat([positions[:, :1], rows.to(positions.dtype)], dim=1)


def set_image_size(module: Any, processor: Any, size: int) -> None:
    """Make a BLIP of transformers read square images of another size: its positions, config and processor.

    Args:
        module: the model.
        processor: its processor; None for none.
        size: width and height of an image, in pixels.

    Raises:
        UserError: if the size is not a multiple of the patch size.
    """
    embeddings, vision = module.vision_model.embeddings, module.config.vision_config
    if size < 1 or size % vision.patch_size:
        raise UserError(
            f"model.image_size={size} must be a multiple of the patches of this model, which are"
            f" {vision.patch_size} pixels wide"
        )
    tokens = 1 + (size // vision.patch_size) ** 2
    positions = embeddings.position_embedding
    if positions.device.type == "meta":
        resized = positions.new_empty(1, tokens, positions.shape[-1])
    else:
        resized = resized_positions(positions.detach(), tokens)
    embeddings.position_embedding = nn.Parameter(resized)
    vision.image_size = embeddings.image_size = size
    embeddings.num_patches, embeddings.num_positions = tokens - 1, tokens
    if processor is not None:
        processor.image_processor.size = {"height": size, "width": size}
