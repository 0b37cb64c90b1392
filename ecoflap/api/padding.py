"""Remove the padding of a sample: of what its mask is of, and of what a decoder reads."""

from __future__ import annotations

from torch import Tensor

from ecoflap.api.padding_masks import MASKED, length_of, padding_mask
from ecoflap.data.batch import Sample
from ecoflap.errors import UserError
from ecoflap.models.core.losses import IGNORED

OF_TARGETS = ("labels", "decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask")
ALONG_TOKENS = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "labels",
    "token_type_ids",
    "mm_token_type_ids",
    "moe_mm_token_type_ids",
    "cross_attention_mask",
    "global_attention_mask",
    "image_attention_mask",
    "image_embeds_position_mask",
    "input_mask",
    "p_mask",
    "position_ids",
    "task_type_ids",
    "lang_ids",
    "langs",
    "input_shape_ids",
    "input_pronunciation_ids",
    "bbox",
)
"""Inputs of which each token has a part, and which are cut with its padding."""
ALONG_OTHERS = (*MASKED, "attention_mask")
"""Likewise of a wave, of frames or of patches."""


def without_padding(sample: Sample, apart: bool) -> Sample:
    """Remove the padding of a sample.

    Args:
        sample: its tensors.
        apart: whether the labels are a text of their own, as in an encoder-decoder.

    Raises:
        UserError: if all tokens are padding.
    """
    kept, length, mask = dict(sample), length_of(sample), padding_mask(sample)
    if apart:
        kept |= _targets_without_padding(sample)
    texts = "input_ids" in sample or "inputs_embeds" in sample
    if not texts:
        kept |= _patches_without_padding(sample)
    if mask is None or length is None or bool(mask.all()):
        return kept
    real = mask.flatten().nonzero().flatten()
    if not len(real):
        raise UserError("a sample of the data is nothing but padding: its attention_mask is all zeros")
    for name in ALONG_TOKENS if texts else ALONG_OTHERS:
        if name in kept and kept[name].shape[: len(length)] == length and not (apart and name == "labels"):
            kept[name] = kept[name].index_select(len(length) - 1, real)
    return kept


def _patches_without_padding(sample: Sample) -> Sample:
    """The patches of a picture [patches, features] without padding, and their mask, if it is of patches."""
    patches, mask = sample.get("pixel_values"), sample.get("pixel_attention_mask")
    if patches is None or mask is None or mask.dim() != 1 or mask.shape != patches.shape[:-1]:
        return {}
    return {"pixel_values": patches[mask != 0], "pixel_attention_mask": mask[mask != 0]}


def _targets_without_padding(sample: Sample) -> Sample:
    """What a decoder reads, by the labels; nothing if they are a class, or no text."""
    labels = sample.get("labels")
    if labels is None or labels.is_floating_point() or not labels.dim():
        return {}
    if labels.numel() != labels.shape[-1]:
        return {}
    read = _read_by_decoder(labels.flatten(), sample.get("decoder_attention_mask"))
    return {
        name: sample[name].index_select(labels.dim() - 1, read.nonzero().flatten())
        for name in OF_TARGETS
        if name in sample and sample[name].shape[: labels.dim()] == labels.shape
    }


def _read_by_decoder(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Whether each token of the labels is more than padding: up to the last target, and in the mask, if any.

    Tokens that are not predicted, such as those of a prompt, are read all the same.
    """
    target = labels != IGNORED
    read = target.flip(0).cummax(0).values.flip(0)
    if mask is None or mask.numel() != len(labels):
        return read
    return read & (target | (mask.flatten() != 0))
