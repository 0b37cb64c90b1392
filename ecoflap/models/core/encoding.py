"""Encode raw examples as calibration and training samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, overload

import torch
from torch import Tensor

from ecoflap.data.batch import Sample
from ecoflap.data.classes import Classes
from ecoflap.data.conversation import Conversation
from ecoflap.data.example import Example
from ecoflap.errors import UserError
from ecoflap.models.core.hooks import setting
from ecoflap.models.core.protocols import Converses, Encodes, require
from ecoflap.models.core.prunable import PrunableModel


class OnDemand(Sequence[Sample]):
    """Samples that are encoded each time they are read; texts keep their own lengths."""

    def __init__(self, encode: Callable[[Any], Sample], examples: Sequence[Any]) -> None:
        self.encode, self.examples = encode, examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> OnDemand: ...

    def __getitem__(self, index: int | slice) -> Sample | OnDemand:
        if isinstance(index, slice):
            return OnDemand(self.encode, self.examples[index])
        return self.encode(self.examples[index])


_on_demand: ContextVar[bool] = ContextVar("on_demand", default=False)


def encoding_on_demand() -> AbstractContextManager[object]:
    """Let data sets that are read in this context encode samples on demand.

    A whole encoded training split does not fit in memory.
    """
    return setting(_on_demand, True)


def require_encoder(model: PrunableModel, option: str, pictures: bool) -> Any:
    """The model's interface, if it can encode the samples of a data set.

    Args:
        model: any model.
        option: the option that asks, for the message.
        pictures: whether the data set has images.

    Raises:
        UserError: if the model can't encode them.
    """
    interface = require(model, Encodes, option)
    if pictures and not model.sees:
        raise UserError(
            f"{option} shows pictures, and {model.name} reads only text; choose another calibration, such as"
            " wikitext2, or another model"
        )
    return interface


def encode_all(
    model: PrunableModel, examples: Sequence[Example], option: str, classes: Classes | None = None
) -> Sequence[Sample]:
    """Calibration samples of raw examples.

    Args:
        model: the model whose interface encodes.
        examples: the examples of the data set.
        option: the option that asks, such as ``calibration=easy_vqa``, for the message.
        classes: the classes of the data set, if it has any.

    Raises:
        UserError: if the model can't encode such examples.
    """
    interface = require_encoder(model, option, any(example.image for example in examples))
    if classes is not None and hasattr(interface, "set_classes"):
        interface.set_classes(model, classes)
    return _encoded(model, interface.encode, examples)


def encode_rows(
    model: PrunableModel, rows: Sequence[Example | Conversation], option: str
) -> Sequence[Sample]:
    """Calibration samples of rows, of which some may be conversations.

    For a model that reads no conversations, one of a single question about at most one picture is encoded as
    that question.

    Args:
        model: the model whose interface encodes.
        rows: the rows.
        option: the option that asks, for the message.

    Raises:
        UserError: if the model can't encode such rows.
    """

    def encode(row: Example | Conversation) -> Sample:
        if isinstance(row, Conversation):
            if isinstance(model.interface, Converses):
                return model.interface.encode_conversation(row)
            row = _question(model, row, option)
        sample: Sample = require(model, Encodes, option).encode(row)
        return sample

    return _encoded(model, encode, rows)


def _encoded(model: PrunableModel, encode: Callable[[Any], Sample], rows: Sequence[Any]) -> Sequence[Sample]:
    """Encode rows now, or in ``encoding_on_demand`` each time that one is read."""
    if _on_demand.get():
        return OnDemand(encode, rows)
    return pad_together(model, tuple(map(encode, rows)))


def _question(model: PrunableModel, row: Conversation, option: str) -> Example:
    """A conversation as one question.

    Raises:
        UserError: if it is more than that.
    """
    question = row.example()
    if question is None:
        first = "set calibration.turns=first, or " if row.has_earlier_answers else ""
        raise UserError(
            f"{option} has conversations of several turns or pictures, and {model.name} reads one question"
            f" about one picture at most; {first}take such rows out"
        )
    return question


def pad_together(model: PrunableModel, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Pad the texts to one length if the model's loss compares samples; otherwise leave them as they are."""
    if not hasattr(model.interface, "pad_token_id"):
        return samples
    return _padded(samples, model.interface.pad_token_id)


def _padded(samples: Sequence[Sample], pad: int) -> tuple[Sample, ...]:
    """Pad ``input_ids`` and ``attention_mask`` of all samples to the length of the longest one."""
    longest = max((len(sample["input_ids"]) for sample in samples if "input_ids" in sample), default=0)
    fills = {"input_ids": pad, "attention_mask": 0}

    def lengthened(name: str, tensor: Tensor) -> Tensor:
        if name not in fills:
            return tensor
        return torch.cat([tensor, tensor.new_full((longest - len(tensor),), fills[name])])

    return tuple({name: lengthened(name, tensor) for name, tensor in sample.items()} for sample in samples)
