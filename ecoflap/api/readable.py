"""Refuse model inputs that a model can't read, or whose loss would be over nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ecoflap.api.padding_masks import first_input, length_of
from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.text.checks import vocabulary_of
from ecoflap.errors import UserError
from ecoflap.models.core.losses import IGNORED
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import most_tokens, warn_of_length
from ecoflap.models.core.token_kinds import PLACEHOLDERS
from ecoflap.models.loading.kinds import option_for_model

READERS = {"input_ids": "get_encoder", "labels": "get_decoder", "decoder_input_ids": "get_decoder"}
"""Which part of an encoder-decoder reads a text, by the method that returns it."""


def check_given(model: PrunableModel, data: CalibrationSet) -> None:
    """Refuse a calibration set whose tokens a model can't read: one of another model, or of its tokenizer.

    Raises:
        UserError: if an id is outside the vocabulary, or a text is longer than the model's positions.
    """
    texts = [sample for sample in data.samples if "input_ids" in sample]
    for sample in texts:
        check_ids(model, sample["input_ids"])
    check_lengths(model, texts)


def picture_tokens(config: Any) -> Tensor:
    """The ids that stand for pictures in a text, which need not be in the vocabulary."""
    tokens = [token for name in PLACEHOLDERS if (token := getattr(config, name, None)) is not None]
    return torch.tensor(tokens, dtype=torch.long)


def check_lengths(model: PrunableModel, samples: Sequence[Sample]) -> None:
    """Refuse texts that have more tokens than a model has positions; all modules are searched for them once.

    Of vision-language models, not all parts read the whole text: there is only a warning if it is longer
    than the model was trained for.

    Raises:
        UserError: if one is too long.
    """
    module: Any = model.module
    if option_for_model(module) == "vlm":
        longest = max(
            (sample["input_ids"].shape[-1] for sample in samples if "input_ids" in sample), default=0
        )
        warn_of_length(model, longest, f"a sample of the data has {longest} tokens")
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


def check_targets(sample: Sample, apart: bool) -> None:
    """Refuse a sample whose loss would be over no token, or over labels of other tokens.

    Raises:
        UserError: if there is no target, or labels and tokens of one text differ in number.
    """
    (name, shape), labels = first_input(sample), sample.get("labels")
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
