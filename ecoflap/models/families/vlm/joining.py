"""Join the samples of a batch for one call of a vision-language model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ecoflap.data.batch import Batch

Join = Callable[[Any, Batch], dict[str, Tensor]]


def join_samples(module: Any, batch: Batch) -> dict[str, Tensor]:
    """The inputs of one call: samples concatenated along their first dimension, floats in the model's dtype.

    Nearly every model reads each sample in them as it would alone; for the others, ``JOINS`` makes the inputs
    that let it. Processors return pixels in fp32, which many models don't convert themselves.
    """
    join = JOINS.get(str(getattr(module.config, "model_type", None)))
    inputs = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
    if join is not None:
        inputs |= join(module, batch)
    dtype = next(module.parameters()).dtype
    return {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}


def _numbered_patches(module: Any, batch: Batch) -> dict[str, Tensor]:
    """Molmo2 knows the patches that a token pools by their numbers in the batch; a negative one is none.

    Since transformers 5.25, the model numbers them itself, by the crops that the processor counts.
    """
    numbers_itself = "image_num_crops" in inspect.signature(module.get_image_features).parameters
    if "image_token_pooling" not in batch or numbers_itself:
        return {}
    pooled, (count, crops, patches) = batch["image_token_pooling"], batch["pixel_values"].shape[:3]
    before = torch.arange(count, device=pooled.device).reshape(-1, 1, 1) * crops * patches
    return {"image_token_pooling": torch.where(pooled < 0, pooled, pooled + before).flatten(0, 1)}


def _strip(_: Any, batch: Batch) -> dict[str, Tensor]:
    """MiniCPM-V reads the patches of all pictures as one strip, [1, channels, patch, width]."""
    if "pixel_values" not in batch:
        return {}
    return {"pixel_values": torch.cat(list(batch["pixel_values"]), dim=-1)}


def _own_positions(module: Any, batch: Batch) -> dict[str, Tensor]:
    """HunYuan-VL numbers the pictures of a batch, and the number is one of the positions of their tokens."""
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    if not set(names) <= set(batch):
        return {}
    samples = zip(*(batch[name] for name in names), strict=True)
    each = [module.model.get_rope_index(*sample)[0] for sample in samples]
    return {"position_ids": torch.cat(each, dim=1)}


JOINS: dict[str, Join] = {
    "molmo2": _numbered_patches,
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), _strip),
    "hunyuan_vl": _own_positions,
}
