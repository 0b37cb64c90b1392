"""Calibration samples from model inputs: split batches into samples as the model's family encodes them."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ecoflap.api.padding import without_padding
from ecoflap.api.padding_masks import check_frames, check_gaps, check_mask, check_uncut
from ecoflap.api.readable import check_ids, check_labels, check_targets, picture_tokens
from ecoflap.data.batch import Sample
from ecoflap.errors import UserError
from ecoflap.models.core.losses import IGNORED
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.families.language.interface import LanguageInterface
from ecoflap.models.families.vlm.interface import VlmInterface
from ecoflap.models.families.vlm.processor_inputs import writes_after_prompt
from ecoflap.models.loading.kinds import option_for_model

RANKS = {"input_ids": 2, "inputs_embeds": 3, "pixel_values": 4, "input_features": 3, "input_values": 2}
"""Dimensions of a batch: of tokens, of pictures, of spectra by time, and of waves."""
RANKS_BY_TYPE = {
    "audio-spectrogram-transformer": {"input_values": 3},
    "clap": {"input_features": 4},
    "siglip2": {"pixel_values": 3},
    "siglip2_vision_model": {"pixel_values": 3},
}
"""Likewise of models that read spectra as pictures, or pictures as patches."""
LEARNED = ("completion_mask", "assistant_masks")
"""Masks of the tokens that are learned, which have ones, as TRL and chat templates write them."""


def samples_of(model: PrunableModel, item: Mapping[str, Any]) -> list[Sample]:
    """Split a batch of model inputs, or the inputs of one sample, into samples.

    Raises:
        UserError: if the tensors don't match each other or the model.
    """
    tensors = {name: _as_index(name, tensor) for name, tensor in _tensors(model, item).items()}
    if "labels" in tensors:
        check_labels(model, tensors["labels"])
    batch = _batched(model, tensors)
    count = len(batch[_leading(batch)])
    joins = _joins(model)
    if odd := [name for name, tensor in batch.items() if tensor.shape[:1] != (count,)]:
        if joins and count == 1:
            return [_finished(model, batch)]
        sizes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batch.items())
        raise UserError(
            f"a batch of {count} samples has {odd[0]} of another first dimension ({sizes}); give batches of"
            " one sample"
        )
    one = (lambda row: slice(row, row + 1)) if joins else (lambda row: row)
    rows = [{name: tensor[one(row)] for name, tensor in batch.items()} for row in range(count)]
    return [_finished(model, row) for row in rows]


def _joins(model: PrunableModel) -> bool:
    """Whether samples of this model keep a batch dimension of one, as its processor returns them."""
    if model.interface is not None:
        return isinstance(model.interface, VlmInterface)
    return option_for_model(model.module) == "vlm"


def _continues_text(model: PrunableModel) -> bool:
    """Whether the model is a decoder language model."""
    return isinstance(model.interface, LanguageInterface) or option_for_model(model.module) == "causal_lm"


def _tensors(model: PrunableModel, item: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of model inputs, on the CPU.

    Lists of numbers become tensors if the model's forward has a parameter of that name. Single numbers and
    booleans, such as ``return_loss=True``, belong to no sample and are left out. Masks of the tokens that are
    learned become labels.

    Raises:
        UserError: if such a list can't become a tensor, there are no tensors, or such a mask fits no ids.
    """
    asked = {*signature(model.module.forward).parameters, *LEARNED}
    found = {}
    for name, value in item.items():
        if isinstance(value, Tensor):
            found[str(name)] = value.detach().cpu().contiguous()
        elif name in asked and value is not None and not isinstance(value, bool | int | float):
            try:
                found[str(name)] = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                raise UserError(
                    f"{name} of the data is a {type(value).__name__} and no tensor; give one tensor per"
                    " name, or samples one by one"
                ) from None
    if not found:
        raise UserError(
            f"the data have {', '.join(map(str, item))}, and no tensor among them; give tensors, by the names"
            f" that {model.name} takes"
        )
    return _labelled(found)


def _labelled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with labels in place of the masks of learned tokens; labels that are given stay as they are.

    Raises:
        UserError: if such a mask and the ids have different shapes.
    """
    masks = {name: tensors.pop(name) for name in LEARNED if name in tensors}
    if "labels" in tensors or "input_ids" not in tensors:
        return tensors
    for name, mask in masks.items():
        ids = tensors.get("labels", tensors["input_ids"])
        if mask.shape != ids.shape:
            raise UserError(
                f"{name} of the data has the shape {list(mask.shape)}, and input_ids {list(ids.shape)}; give"
                " one number for each token"
            )
        tensors["labels"] = ids.long().masked_fill(mask == 0, IGNORED)
    return tensors


def _as_index(name: str, tensor: Tensor) -> Tensor:
    """Ids and labels as PyTorch's losses take them, which refuse integers of 32 bits."""
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return tensor.long() if whole and name.endswith(("_ids", "labels")) else tensor


def _leading(batch: Mapping[str, Tensor]) -> str:
    """The name of the tensor whose first dimension counts the samples."""
    return next((name for name in RANKS if name in batch), next(iter(batch)))


def _batched(model: PrunableModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add a batch dimension to the inputs of one sample."""
    name = _leading(tensors)
    kind = str(getattr(getattr(model.module, "config", None), "model_type", None))
    if tensors[name].dim() >= {**RANKS, **RANKS_BY_TYPE.get(kind, {})}.get(name, 1):
        return tensors
    return {name: tensor[None] for name, tensor in tensors.items()}


class _Form(NamedTuple):
    """How a model's family reads a sample.

    Attributes:
        text: whether the sample has a text, in tokens or embedded.
        apart: whether the labels are a text of their own, as in an encoder-decoder.
        joined: whether the text keeps a batch dimension of one, as a processor returns it with pictures.
        language: whether a decoder language model continues the text.
    """

    text: bool
    apart: bool
    joined: bool
    language: bool

    @classmethod
    def of(cls, model: PrunableModel, sample: Sample) -> _Form:
        """How this model's family reads this sample."""
        text = "input_ids" in sample or "inputs_embeds" in sample
        has_config = getattr(model.module, "config", None) is not None
        apart = has_config and not writes_after_prompt(model.module)
        joined = text and _joins(model)
        language = text and not apart and not joined and _continues_text(model)
        return cls(text, apart, joined, language)


def _finished(model: PrunableModel, sample: Sample) -> Sample:
    """A sample as the model's family encodes it: without padding, and with the labels that its loss needs."""
    form = _Form.of(model, sample)
    _check(model, sample, form)
    sample = without_padding(sample, form.apart)
    if not form.text:
        check_uncut(model, sample)
    if form.language:
        sample.pop("attention_mask", None)
    return _encoded(model, sample, form) if "input_ids" in sample else sample


def _check(model: PrunableModel, sample: Sample, form: _Form) -> None:
    """Refuse a sample whose ids, masks or labels the model's family can't read.

    Raises:
        UserError: if there are such.
    """
    if "input_ids" in sample:
        check_ids(model, sample["input_ids"])
    if form.language:
        check_mask(model, sample)
    # Of BLIP-2, the padding of a text may stand between its picture's tokens and its own.
    if not form.joined or "position_ids" in sample:
        check_gaps(model, sample)
    if form.apart or form.joined or form.language:
        check_targets(sample, form.apart)
    if not form.text and not form.apart:
        check_frames(model, sample)


def _encoded(model: PrunableModel, sample: Sample, form: _Form) -> Sample:
    """A text without padding, with the mask and the labels that the model's family gives it."""
    if hasattr(model.interface, "pad_token_id") or form.apart:
        mask = sample.get("attention_mask", torch.ones_like(sample["input_ids"]))
        return {**sample, "attention_mask": mask}
    if form.joined and "labels" not in sample:
        sample["labels"] = _text_targets(getattr(model.module, "config", None), sample["input_ids"])
    elif form.language and "labels" in sample and torch.equal(sample["labels"], sample["input_ids"]):
        del sample["labels"]
    return sample


def _text_targets(config: Any, input_ids: Tensor) -> Tensor:
    """The tokens of a text as its targets, except those that stand for images."""
    return input_ids.masked_fill(torch.isin(input_ids, picture_tokens(config)), IGNORED)
