"""What a data set says before a model's processor makes tensors of it, and what a model can do with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.prunable import PrunableModel, Sample


@dataclass(frozen=True)
class Example:
    """One raw example of any data set.

    Attributes:
        text: the question, or whatever the model reads beside the picture.
        target: the answer, caption or continuation that it should write.
        image: path of the picture.
        second_image: path of another picture, where a question is about two.
        label: index of the right class.
        bare: the text is no question but what the model reads as it stands (the beginning of a caption), without its prompt.
    """

    text: str = ""
    target: str = ""
    image: str | None = None
    second_image: str | None = None
    label: int | None = None
    bare: bool = False

    def worded(self, prompt: str) -> str:
        """The text put into a model's prompt, which has one ``{}`` for it."""
        return self.text if self.bare else prompt.format(self.text)


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, as a text tower reads them.

    Attributes:
        names: in the order of the labels.
        templates: each with one ``{}`` for a name; a class is the mean over them.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Generation:
    """How answers are generated.

    Attributes:
        beams: beam width.
        max_new_tokens: longest answer.
        min_new_tokens: shortest answer.
        length_penalty: of the beam search.
    """

    beams: int = 1
    max_new_tokens: int = 10
    min_new_tokens: int = 0
    length_penalty: float = 1.0

    def options(self) -> dict[str, Any]:
        """As arguments of transformers' ``generate``."""
        options: dict[str, Any] = {"num_beams": self.beams, "max_new_tokens": self.max_new_tokens, "do_sample": False}
        if self.min_new_tokens:
            options["min_new_tokens"] = self.min_new_tokens
        return options | ({"length_penalty": self.length_penalty} if self.beams > 1 else {})


@runtime_checkable
class Encodes(Protocol):
    """Makes calibration samples: inputs and targets of the loss that the model is scored with.

    An interface with a ``pad_token_id`` wants its texts at one length, because its loss compares samples with each other. One with a
    ``set_classes(model, classes)`` may score by classification, and has to know the classes first.
    """

    def encode(self, example: Example) -> Sample:
        """Model inputs of one example, without a batch dimension."""


@runtime_checkable
class Answers(Protocol):
    """Writes text about pictures or texts."""

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The text that the model writes for each example, in one batch."""


@runtime_checkable
class Describes(Answers, Protocol):
    """Writes text about pictures.

    Attributes:
        sees: the pictures of examples are looked at.
    """

    sees: bool


@runtime_checkable
class Ranks(Protocol):
    """Chooses answers out of a list."""

    def rank(self, model: PrunableModel, examples: Sequence[Example], answers: Sequence[str], k: int) -> list[str]:
        """The likeliest answer to each question, among the ``k`` that begin with the likeliest tokens."""


@runtime_checkable
class Embeds(Protocol):
    """Puts pictures and texts into one space, where the cosine says how well they fit."""

    def embed_images(self, model: PrunableModel, paths: Sequence[str]) -> Tensor:
        """Normalised features, [images, features]."""

    def embed_texts(self, model: PrunableModel, texts: Sequence[str]) -> Tensor:
        """Normalised features, [texts, features]."""


@runtime_checkable
class Matches(Embeds, Protocol):
    """Can also look at a picture and a text together."""

    def match(self, model: PrunableModel, images: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Logit of "they belong together" for each pair, [pairs]."""


@runtime_checkable
class Classifies(Protocol):
    """Says which class a picture, or a picture with a text, belongs to."""

    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        """Logits, [examples, classes]."""


@runtime_checkable
class Chooses(Protocol):
    """Says how likely each of some continuations is."""

    def choose(self, model: PrunableModel, texts: Sequence[str], choices: Sequence[str]) -> Tensor:
        """Log-probability of the first token of each choice after each text, [texts, choices]."""

    def length(self, text: str) -> int:
        """Number of tokens that the model would read."""


def require(model: PrunableModel, skill: Any, option: str) -> Any:
    """The model's interface, when it can do what a data set or task needs: one of the protocols here.

    Raises:
        UserError: it can't.
    """
    if not isinstance(model.interface, skill):
        able = [known for known in (Encodes, Answers, Describes, Embeds, Matches, Classifies, Chooses) if isinstance(model.interface, known)]
        group, what, such = option.split("=")[0], "reads only text", ", such as wikitext2"
        if set(able) - {Answers, Chooses}:
            what, such = f"only {' and '.join(known.__name__.lower() for known in able)}", ""
        raise UserError(
            f"{option} needs a model that {skill.__name__.lower()}, and {model.name} {what}; choose another {group}{such}, or another model"
        )
    return model.interface


class OnDemand(Sequence[Sample]):
    """Samples that are encoded each time they are asked for; texts have their own lengths."""

    def __init__(self, interface: Encodes, examples: Sequence[Example]) -> None:
        self.interface, self.examples = interface, examples

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> OnDemand: ...

    def __getitem__(self, index: int | slice) -> Sample | OnDemand:
        return OnDemand(self.interface, self.examples[index]) if isinstance(index, slice) else self.interface.encode(self.examples[index])


_on_demand: ContextVar[bool] = ContextVar("on_demand", default=False)


@contextmanager
def encoding_on_demand() -> Iterator[None]:
    """Let data sets that are read meanwhile encode their samples when they are asked for: a whole training split does not fit in memory."""
    token = _on_demand.set(True)
    try:
        yield
    finally:
        _on_demand.reset(token)


def encode_all(model: PrunableModel, examples: Sequence[Example], option: str, classes: Classes | None = None) -> Sequence[Sample]:
    """Calibration samples of raw examples.

    Args:
        model: whose interface encodes.
        examples: as the data set has them.
        option: what asks, such as ``calibration=easy_vqa``, for the message.
        classes: of the data set, where it has classes.

    Raises:
        UserError: the model can't make use of such examples.
    """
    interface: Any = require(model, Encodes, option)
    if any(example.image for example in examples) and not getattr(interface, "sees", False):
        raise UserError(f"{option} shows pictures, and {model.name} reads only text; choose another calibration, such as wikitext2, or another model")
    if classes is not None and hasattr(interface, "set_classes"):
        interface.set_classes(model, classes)
    if _on_demand.get():
        return OnDemand(interface, examples)
    return pad_together(model, tuple(interface.encode(example) for example in examples))


def pad_together(model: PrunableModel, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Bring the texts to one length where the model's loss compares samples; elsewhere they stay as they are."""
    return _padded(samples, model.interface.pad_token_id) if hasattr(model.interface, "pad_token_id") else samples


def _padded(samples: Sequence[Sample], pad: int) -> tuple[Sample, ...]:
    """Bring ``input_ids`` and ``attention_mask`` of all samples to the longest one's length."""
    longest = max((len(sample["input_ids"]) for sample in samples if "input_ids" in sample), default=0)
    fills = {"input_ids": pad, "attention_mask": 0}

    def lengthened(name: str, tensor: Tensor) -> Tensor:
        if name not in fills:
            return tensor
        return torch.cat([tensor, tensor.new_full((longest - len(tensor),), fills[name])])

    return tuple({name: lengthened(name, tensor) for name, tensor in sample.items()} for sample in samples)
