"""What a model can do with the examples of a data set: its interface implements some of these protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ecoflap.data.batch import Sample
from ecoflap.data.conversation import Conversation
from ecoflap.data.example import Example, Generation
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel


@runtime_checkable
class Encodes(Protocol):
    """Encodes calibration samples: inputs and targets of the loss that the model is scored with.

    An interface with a ``pad_token_id`` needs texts of one length, because its loss compares samples with
    each other. One with a ``set_classes(model, classes)`` may score by classification, and needs the classes
    first.
    """

    def encode(self, example: Example) -> Sample:
        """Model inputs of one example, without a batch dimension."""


@runtime_checkable
class Converses(Protocol):
    """Encodes conversations about any number of pictures; the loss is of the last answer."""

    def encode_conversation(self, conversation: Conversation) -> Sample:
        """Model inputs of one conversation, with ``labels``, and without a batch dimension.

        Raises:
            UserError: if the model can't read this conversation.
        """


@runtime_checkable
class Answers(Protocol):
    """Generates text about images or texts."""

    def answer(self, model: PrunableModel, examples: Sequence[Example], generation: Generation) -> list[str]:
        """The text that the model generates for each example, in one batch."""


@runtime_checkable
class Describes(Answers, Protocol):
    """Generates text about images.

    Attributes:
        sees: whether the interface uses the images of examples.
    """

    sees: bool


@runtime_checkable
class Replies(Protocol):
    """Continues conversations."""

    def reply(
        self, model: PrunableModel, conversations: Sequence[Conversation], generation: Generation
    ) -> list[str]:
        """What the model writes instead of the last answer of each conversation, in one batch.

        Args:
            model: the model.
            conversations: each about one picture, or one alone about any number of pictures.
            generation: how answers are generated.

        Raises:
            UserError: if the model can't read such a conversation.
        """


@runtime_checkable
class Ranks(Protocol):
    """Chooses answers from a list."""

    def rank(
        self, model: PrunableModel, examples: Sequence[Example], answers: Sequence[str], k: int
    ) -> list[str]:
        """The likeliest answer to each question, among the ``k`` whose first tokens are the likeliest."""


@runtime_checkable
class Embeds(Protocol):
    """Embeds images and texts in one space, where the cosine measures how well they match."""

    def embed_images(self, model: PrunableModel, paths: Sequence[str | None]) -> Tensor:
        """Normalised features, [images, features]."""

    def embed_texts(self, model: PrunableModel, texts: Sequence[str]) -> Tensor:
        """Normalised features, [texts, features]."""


@runtime_checkable
class Matches(Embeds, Protocol):
    """Also judges an image and a text jointly."""

    def match(self, model: PrunableModel, images: Sequence[str | None], texts: Sequence[str]) -> Tensor:
        """Logit of "this image and this text match" for each pair, [pairs]."""


@runtime_checkable
class Classifies(Protocol):
    """Predicts the class of an image, or of an image with a text."""

    def classify(self, model: PrunableModel, examples: Sequence[Example]) -> Tensor:
        """Logits, [examples, classes]."""


@runtime_checkable
class NamesClasses(Classifies, Protocol):
    """Predicts one of its own classes of an image.

    Attributes:
        names: of the classes, in the order of the logits.
    """

    names: Sequence[str]


@runtime_checkable
class Chooses(Protocol):
    """Predicts the likelihood of given continuations."""

    def choose(self, model: PrunableModel, texts: Sequence[str], choices: Sequence[str]) -> Tensor:
        """Log-probability of the first token of each choice after each text, [texts, choices]."""

    def length(self, text: str) -> int:
        """Number of tokens of a text."""


def require(model: PrunableModel, protocol: Any, option: str) -> Any:
    """The model's interface, if it implements a protocol that a data set or task needs.

    Args:
        model: any model.
        protocol: one of the protocols here.
        option: the option that asks, for the message.

    Raises:
        UserError: if it does not implement the protocol.
    """
    if not isinstance(model.interface, protocol):
        able = [
            known
            for known in (Encodes, Answers, Describes, Embeds, Matches, Classifies, Chooses)
            if isinstance(model.interface, known)
        ]
        group, what, such = option.split("=")[0], "reads only text", ", such as wikitext2"
        if set(able) - {Answers, Chooses}:
            what, such = f"only {' and '.join(known.__name__.lower() for known in able)}", ""
        raise UserError(
            f"{option} needs a model that {protocol.__name__.lower()}, and {model.name} {what}; choose"
            f" another {group}{such}, or another model"
        )
    return model.interface
