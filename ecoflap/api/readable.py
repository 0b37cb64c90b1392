"""Refuse model inputs that a model can't read, or whose loss would be over nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.text.calibration import vocabulary_of
from ecoflap.errors import UserError
from ecoflap.models.core.losses import IGNORED
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import most_tokens
from ecoflap.models.loading.kinds import option_for_model

IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id")
READERS = {"input_ids": "get_encoder", "labels": "get_decoder", "decoder_input_ids": "get_decoder"}
"""Which part of an encoder-decoder reads a text, by the method that returns it."""
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
    if mask is None or mask.shape != length_of(sample) or not bool(((mask == 0) | (mask == 1)).all()):
        return None
    return None if mask.is_floating_point() and not mask.any() else mask


def check_given(model: PrunableModel, data: CalibrationSet) -> None:
    """Refuse a calibration set that was drawn for another model, if this one can't read its tokens.

    Raises:
        UserError: if an id is outside the vocabulary, or a text is longer than the model's positions.
    """
    texts = [sample for sample in data.samples if "input_ids" in sample]
    for sample in texts:
        check_ids(model, sample["input_ids"])
    check_lengths(model, texts)


def picture_tokens(config: Any) -> Tensor:
    """The ids that stand for pictures in a text, which need not be in the vocabulary."""
    tokens = [token for name in IMAGE_TOKENS if (token := getattr(config, name, None)) is not None]
    return torch.tensor(tokens, dtype=torch.long)


def check_lengths(model: PrunableModel, samples: Sequence[Sample]) -> None:
    """Refuse texts that have more tokens than a model has positions; all modules are searched for them once.

    Vision-language models are skipped, as not all of their parts read the whole text.

    Raises:
        UserError: if one is too long.
    """
    module: Any = model.module
    if option_for_model(module) == "vlm":
        return
    apart = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
    for name in READERS if apart else ("input_ids",):
        texts = [sample[name] for sample in samples if name in sample and sample[name].dim()]
        longest = max((text.shape[-1] for text in texts), default=0)
        reader = getattr(module, READERS[name], lambda: module)() if apart else module
        most = most_tokens(reader) if longest else None
        if most is not None and longest > most:
            raise UserError(
                f"a sample of the data has {name} of {longest} tokens, and {model.name} has positions for"
                f" {most}; give shorter texts"
            )


def check_labels(model: PrunableModel, labels: Tensor) -> None:
    """Refuse labels that the model can't output.

    Raises:
        UserError: if one is not the number of a class, or of a token in the vocabulary.
    """
    what, known = _outputs(model)
    found = labels[labels != IGNORED]
    if known is None or labels.dtype != torch.long or not found.numel():
        return
    if not 0 <= int(found.min()) <= int(found.max()) < known:
        raise UserError(
            f"labels of the data hold numbers from {int(found.min())} to {int(found.max())}, and"
            f" {model.name} has {known} {what}, numbered from 0; give their numbers, or {IGNORED} for no"
            " target"
        )


def _outputs(model: PrunableModel) -> tuple[str, int | None]:
    """What the model outputs, and how many there are; None if that is unknown, as for a CLIP."""
    module: Any = model.module
    if option_for_model(module) == "image_classifier":
        return "classes", getattr(module.config, "num_labels", None)
    try:
        weight = getattr(module.get_output_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):
        return "tokens", None
    return "tokens", None if weight is None else len(weight)


def check_mask(model: PrunableModel, sample: Sample) -> None:
    """Refuse a mask of more than padding, as language models get none.

    Raises:
        UserError: if there is a mask of another shape than the tokens, or of other values than 0 and 1.
    """
    mask = sample.get("attention_mask")
    if mask is not None and padding_mask(sample) is None:
        name, shape = _first(sample)
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
    real = mask.flatten().nonzero()
    if gap := int(real.max() - real.min()) + 1 - len(real):
        name, _ = _first(sample)
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
        first, shape = _first(sample)
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
            first, shape = _first(sample)
            raise UserError(
                f"a sample of the data has {first} {shape} with padding, and {name}"
                f" {list(sample[name].shape)}, whose rows for padding {model.name} doesn't tell; give such"
                " samples one by one, without padding"
            )


def _first(sample: Sample) -> tuple[str, list[int]]:
    """What a model reads of a sample, by its name, and its shape."""
    name = next((name for name in (*MASKED, "pixel_values") if name in sample), next(iter(sample)))
    return name, list(sample[name].shape)


def check_targets(sample: Sample, apart: bool) -> None:
    """Refuse a sample whose loss would be over no token, or over labels of other tokens.

    Raises:
        UserError: if there is no target, or labels and tokens of one text differ in number.
    """
    (name, shape), labels = _first(sample), sample.get("labels")
    if labels is not None and not apart and labels.shape != length_of(sample):
        raise UserError(
            f"a sample of the data has {name} {shape} and labels {list(labels.shape)}; give a label per token"
        )
    targets = labels if labels is not None or apart else sample.get("input_ids")
    if targets is None:
        return  # a loss of one's own may do without
    if not (targets if apart else targets[..., 1:]).ne(IGNORED).any():
        raise UserError(
            f"a sample of the data has {name} {shape} and no target for the loss, which is over the next"
            " token; give longer texts, or labels other than -100"
        )


def check_ids(model: PrunableModel, ids: Tensor) -> None:
    """Refuse invalid token ids.

    Raises:
        UserError: if they are not integers, or one is outside the vocabulary.
    """
    if ids.is_floating_point() or not ids.numel():
        raise UserError(f"input_ids of the data are {ids.dtype} {list(ids.shape)}; give token ids")
    known = _vocabulary(model)
    ids = ids[~torch.isin(ids, picture_tokens(getattr(model.module, "config", None)))]
    if known is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < known:
        raise UserError(
            f"input_ids of the data hold ids from {int(ids.min())} to {int(ids.max())}, and {model.name} has"
            f" a vocabulary of {known}; make them with its own tokenizer"
        )


def _vocabulary(model: PrunableModel) -> int | None:
    """The size of the model's vocabulary; None if it is unknown, as for a CLIP."""
    try:
        return vocabulary_of(model)
    except (AttributeError, NotImplementedError):
        return None
