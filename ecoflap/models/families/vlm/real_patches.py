"""Which patches of pictures are real, where a processor pads pictures and the loss ignores the padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ecoflap.data.batch import Batch

Masks = dict[str, Tensor]


def real_patches(module: Any, inputs: Batch) -> Masks:
    """Where patches are real, [pictures, patches], by the kind of tower that reads the patches.

    Args:
        module: the model.
        inputs: of one call.

    Returns:
        Empty where all patches count.
    """
    find = OF_MODELS.get(str(getattr(module.config, "model_type", None)))
    return _of_patches(inputs) if find is None else find(module, inputs)


def _of_patches(inputs: Batch) -> Masks:
    """From pictures that are given as rows of patches, [pictures, patches, ...].

    LFM2-VL marks real ones by 1, Gemma 4 padding by a position of -1; masks of pixels have more dimensions.
    """
    mask, places = inputs.get("pixel_attention_mask"), inputs.get("image_position_ids")
    if mask is not None and mask.ndim == 2:
        return {"vision": mask}
    if places is not None and places.ndim == 3:
        return {"vision": (places != -1).any(dim=-1)}
    return {}


def _aria(module: Any, inputs: Batch) -> Masks:
    """A patch of Aria is real if some of its pixels are."""
    mask = inputs.get("pixel_mask")
    return {} if mask is None else {"vision": _pixels(module, mask).any(dim=-1)}


def _idefics2(module: Any, inputs: Batch) -> Masks:
    """A patch of Idefics2 is real if all of its pixels are; it takes a picture of zeros for none at all."""
    mask, pixels = inputs.get("pixel_attention_mask"), inputs.get("pixel_values")
    if mask is None or pixels is None:
        return {}
    shown = pixels.flatten(0, 1).flatten(1).any(dim=1)
    return {"vision": _pixels(module, mask.flatten(0, 1)[shown]).all(dim=-1)}


def _pix2struct(_: Any, inputs: Batch) -> Masks:
    """Pix2Struct's only attention mask is of the patches; without one, patches of zeros are padding."""
    mask = inputs.get("attention_mask")
    return {"encoder": inputs["flattened_patches"].sum(dim=-1) != 0 if mask is None else mask}


def _pixels(module: Any, mask: Tensor) -> Tensor:
    """The pixels of each patch, [pictures, patches, pixels], of a mask [pictures, height, width]."""
    size = module.config.vision_config.patch_size
    return mask.bool().unfold(1, size, size).unfold(2, size, size).flatten(3).flatten(1, 2)


# The forward pass of each model tells whether padding counts. Those here mask it by attention, in the tower
# and in what reads the tower's output (Aria's projector, Idefics2's resampler, Pix2Struct's decoder), so that
# the loss is the same whatever the padding holds. Others that take such masks compute with the padding: the
# connectors of Idefics3 and SmolVLM, and Kosmos-2.5's projection, read all patches.
OF_MODELS: dict[str, Callable[[Any, Batch], Masks]] = {
    "aria": _aria,
    "idefics2": _idefics2,
    "pix2struct": _pix2struct,
}
