"""Conversations with a model, with or without pictures, before a processor encodes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ecoflap.data.example import Example


@dataclass(frozen=True)
class Picture:
    """A picture that a turn shows.

    Attributes:
        image: its path, or an ``ImageInMemory``.
    """

    image: str


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: system, user or assistant.
        parts: texts and pictures, in their order.
    """

    role: str
    parts: tuple[str | Picture, ...]

    @property
    def text(self) -> str:
        """All texts of the turn, with a line end between them."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[str]:
        """The pictures of the turn."""
        return [part.image for part in self.parts if isinstance(part, Picture)]


@dataclass(frozen=True)
class Conversation:
    """Turns up to an answer; the loss is that of the last answer, given all before it.

    Attributes:
        turns: the last one is the assistant's, and is text alone.
    """

    turns: tuple[Turn, ...]

    @property
    def target(self) -> str:
        """The last answer."""
        return self.turns[-1].text

    @property
    def images(self) -> list[str]:
        """The pictures of all turns."""
        return [image for turn in self.turns for image in turn.images]

    @property
    def has_earlier_answers(self) -> bool:
        """Whether there is an answer before the last one."""
        return any(turn.role == "assistant" for turn in self.turns[:-1])

    def example(self) -> Example | None:
        """The same as a question with its answer; None where it is more than that.

        It is for models without a chat template: a system turn stands before the question, in lines of its
        own.
        """
        roles = [turn.role for turn in self.turns]
        if roles not in (["user", "assistant"], ["system", "user", "assistant"]) or len(self.images) > 1:
            return None
        text = "\n".join(turn.text for turn in self.turns[:-1] if turn.text)
        return Example(text, self.target, next(iter(self.images), None))

    def asked(self) -> list[dict[str, Any]]:
        """All before the last answer as messages for a processor's chat template."""
        return [{"role": turn.role, "content": list(_content(turn))} for turn in self.turns[:-1]]


def _content(turn: Turn) -> Iterator[dict[str, str]]:
    for part in turn.parts:
        yield {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
