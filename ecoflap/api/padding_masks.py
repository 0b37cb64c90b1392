"""Masks of padding: what they are of, and those that are refused."""

from __future__ import annotations

import torch
from torch import Tensor

from ecoflap.data.batch import Sample
from ecoflap.errors import UserError
from ecoflap.models.core.losses import IGNORED
from ecoflap.models.core.prunable import PrunableModel

MASKED = {"input_ids": 0, "inputs_embeds": 1, "input_values": 0, "input_features": 1, "flattened_patches": 1}
"""What an ``attention_mask`` may be of, and how many dimensions each token, frame or patch of it has."""
PADDING_MASKS = (
    "attention_mask",
    "pixel_mask",
    "pixel_attention_mask",
    "padding_mask",
    "input_features_mask",
)
OF_FRAMES = ("labels", "mask_time_indices", "sampled_negative_indices")
"""Inputs of which each frame of a sound may have a row."""
FIXED_LENGTH = ("whisper",)
"""Models that read as many frames whatever their mask says."""


def first_input(sample: Sample) -> tuple[str, list[int]]:
    """What a model reads of a sample, by its name, and its shape."""
    name = next((name for name in (*MASKED, "pixel_values") if name in sample), next(iter(sample)))
    return name, list(sample[name].shape)


def length_of(sample: Sample) -> torch.Size | None:
    """The shape of a mask of a sample's padding: [tokens], or [1, tokens] where it keeps a batch dimension.

    The tokens are samples of a wave, frames or patches where the model reads no text; None where a mask could
    be of nothing.
    """
    name = next((name for name in MASKED if name in sample), None)
    return None if name is None else sample[name].shape[: sample[name].dim() - MASKED[name]]


def padding_mask(sample: Sample) -> Tensor | None:
    """The ``attention_mask`` of a sample if it marks padding: ones and zeros, in the shape ``length_of``.

    Masks of pairs of tokens, and those that are added to scores of attention, are none.
    """
    mask = sample.get("attention_mask")
    return mask if mask is not None and mask.shape == length_of(sample) and marks_padding(mask) else None


def marks_padding(mask: Tensor) -> bool:
    """Whether a mask is ones and zeros for a row of tokens, and not zeros that are added to scores."""
    binary = mask.dim() > 0 and mask.numel() == mask.shape[-1] and bool(((mask == 0) | (mask == 1)).all())
    return binary and not (mask.is_floating_point() and not mask.any())


def places_of_ones(mask: Tensor, name: str, whole: bool = True) -> Tensor:
    """The places of the tokens that a mask of padding leaves, [tokens].

    Args:
        mask: ones and zeros.
        name: the mask, for messages.
        whole: refuse zeros between ones, as later tokens would get other positions.

    Raises:
        UserError: if there are no ones, or zeros between them.
    """
    real = mask.flatten().nonzero().flatten()
    if not len(real):
        raise UserError(f"a sample of the data is nothing but padding: its {name} is all zeros")
    if whole and (gap := _gap(real)):
        raise UserError(
            f"a sample of the data has {gap} zeros between the ones of its {name}, and only padding before or"
            " behind the tokens is removed; give them without the gap"
        )
    return real


def _gap(real: Tensor) -> int:
    """How many zeros a mask has between its ones, whose places are given, [tokens]."""
    return int(real[-1] - real[0]) + 1 - len(real)


def check_mask(model: PrunableModel, sample: Sample) -> None:
    """Refuse a mask of more than padding, as language models get none.

    Raises:
        UserError: if there is a mask of another shape than the tokens, or of other values than 0 and 1.
    """
    mask = sample.get("attention_mask")
    if mask is not None and padding_mask(sample) is None:
        name, shape = first_input(sample)
        length = list(length_of(sample) or ())
        of_tokens = f"the shape of {name}" if "input_ids" in sample else f"the shape {length}"
        raise UserError(
            f"a sample of the data has {name} {shape} and attention_mask {list(mask.shape)}, and {model.name}"
            f" takes masks of padding alone, of ones and zeros in {of_tokens}; give such a mask or none, and"
            " texts that were packed into one sample as samples of their own"
        )


def check_gaps(model: PrunableModel, sample: Sample) -> None:
    """Refuse a mask with zeros between its ones: without these tokens, later ones would get other positions.

    Raises:
        UserError: if there is such a mask.
    """
    mask = padding_mask(sample)
    if mask is None or not mask.any():
        return
    if gap := _gap(mask.flatten().nonzero().flatten()):
        name, _ = first_input(sample)
        raise UserError(
            f"a sample of the data has an attention_mask with {gap} zeros between its ones, and of"
            f" {model.name} only padding before or behind {name} is removed; give them without the gap, or"
            f" leave the tokens in the mask and give them the label {IGNORED}"
        )


def check_uncut(model: PrunableModel, sample: Sample) -> None:
    """Refuse a mask of padding that is still there, in a sample without tokens for a model of transformers.

    Models that read as many frames of each sample are left theirs, and others any mask of their own.

    Raises:
        UserError: if there is such a mask.
    """
    kind = getattr(getattr(model.module, "config", None), "model_type", None)
    for name in PADDING_MASKS if kind is not None else ():
        mask = sample.get(name)
        if mask is None or mask.all() or (kind in FIXED_LENGTH and name == "attention_mask"):
            continue
        first, shape = first_input(sample)
        raise UserError(
            f"a sample of the data has {first} {shape} and {name} {list(mask.shape)} with zeros, which"
            f" {model.name} would be pruned on; give such samples one by one, without padding"
        )


def check_frames(model: PrunableModel, sample: Sample) -> None:
    """Refuse padding of a wave whose frames have rows of their own, as how many are padding is not known.

    Raises:
        UserError: if there are such rows.
    """
    mask = padding_mask(sample)
    if mask is None or mask.all():
        return
    for name in OF_FRAMES:
        if name in sample and sample[name].dim() > 1:
            first, shape = first_input(sample)
            raise UserError(
                f"a sample of the data has {first} {shape} with padding, and {name}"
                f" {list(sample[name].shape)}, whose rows for padding {model.name} doesn't tell; give such"
                " samples one by one, without padding"
            )
