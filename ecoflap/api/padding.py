"""Remove the padding of a sample: of what its mask is of, and of what a decoder reads."""

from __future__ import annotations

from torch import Tensor

from ecoflap.api.padding_masks import MASKED, length_of, marks_padding, padding_mask, places_of_ones
from ecoflap.data.batch import Sample
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
QUERIES = ("qformer_input_ids", "qformer_attention_mask")
"""The text that a Q-Former reads, in tokens of its own, and its mask."""
PATCHES = ("pixel_values", "pixel_attention_mask")


def without_padding(sample: Sample, apart: bool) -> Sample:
    """Remove the padding of a sample.

    Args:
        sample: its tensors.
        apart: whether the labels are a text of their own, as in an encoder-decoder.

    Raises:
        UserError: if all tokens are padding.
    """
    length, mask = length_of(sample), padding_mask(sample)
    kept = {**sample, **_masked_apart(sample, *QUERIES, whole=True)}
    if apart:
        kept |= _targets_without_padding(sample)
    texts = "input_ids" in sample or "inputs_embeds" in sample
    if not texts:
        kept |= _masked_apart(sample, *PATCHES, whole=False)
    if mask is None or length is None or bool(mask.all()):
        return kept
    real = places_of_ones(mask, "attention_mask", whole=False)  # gaps are refused where they matter
    for name in ALONG_TOKENS if texts else ALONG_OTHERS:
        if name in kept and kept[name].shape[: len(length)] == length and not (apart and name == "labels"):
            kept[name] = kept[name].index_select(len(length) - 1, real)
    return kept


def _masked_apart(sample: Sample, name: str, mask_name: str, whole: bool) -> Sample:
    """An input with a mask of its own, and that mask, without padding; nothing if it is not of its tokens.

    Raises:
        UserError: as ``places_of_ones``.
    """
    given, mask = sample.get(name), sample.get(mask_name)
    if given is None or mask is None or not marks_padding(mask):
        return {}
    if mask.shape not in (given.shape, given.shape[:-1]):
        return {}
    real, dim = places_of_ones(mask, mask_name, whole), mask.dim() - 1
    return {name: given.index_select(dim, real), mask_name: mask.index_select(dim, real)}


def _targets_without_padding(sample: Sample) -> Sample:
    """What a decoder reads, by the labels, or by its mask where there are none; nothing if it is no text.

    Raises:
        UserError: if all of it is padding, or the mask that decides has zeros between ones.
    """
    labels, mask = sample.get("labels"), sample.get("decoder_attention_mask")
    if labels is None:
        if mask is None or not marks_padding(mask):
            return {}
        length, read = mask.shape, places_of_ones(mask, "decoder_attention_mask")
    elif labels.is_floating_point() or not labels.dim():
        return {}
    elif labels.numel() == labels.shape[-1]:
        length, read = labels.shape, _read_by_decoder(labels.flatten() != IGNORED, mask)
    elif labels.dim() == 2:  # codes of a sound, [tokens, codebooks]
        length, read = labels.shape[:1], _read_by_decoder((labels != IGNORED).any(dim=1), mask)
    else:
        return {}
    return {
        name: sample[name].index_select(len(length) - 1, read)
        for name in OF_TARGETS
        if name in sample and sample[name].shape[: len(length)] == length
    }


def _read_by_decoder(target: Tensor, mask: Tensor | None) -> Tensor:
    """The places of tokens that are more than padding: up to the last target, and in the mask, if any.

    Tokens that are not predicted, such as those of a prompt, are read all the same.

    Args:
        target: whether each token is predicted, [tokens].
        mask: of the same tokens, or of others.
    """
    read = target.flip(0).cummax(0).values.flip(0)
    if mask is not None and mask.numel() == len(target):
        read = read & (target | (mask.flatten() != 0))
    return read.nonzero().flatten()
