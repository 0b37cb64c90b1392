"""Raw examples of data sets, before a processor encodes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ecoflap.errors import NumericalError


@dataclass(frozen=True)
class Example:
    """A raw example of any data set.

    Attributes:
        text: the question, or any text that the model reads beside the picture.
        target: the answer, caption or continuation that the model should write.
        image: path of the picture.
        second_image: path of the second picture of a question about two.
        label: index of the right class.
        bare: whether the text is the beginning of the target, which the model reads without its prompt,
            instead of a question.
    """

    text: str = ""
    target: str = ""
    image: str | None = None
    second_image: str | None = None
    label: int | None = None
    bare: bool = False

    @property
    def images(self) -> list[str]:
        """The paths of its pictures."""
        return [image for image in (self.image, self.second_image) if image]

    @property
    def caption(self) -> str:
        """What the model writes, with the beginning that it reads, if there is one."""
        return f"{self.text} {self.target}".strip() if self.bare else self.target

    def worded(self, prompt: str) -> str:
        """The text in a model's prompt, which has one ``{}`` for it."""
        return self.text if self.bare else prompt.format(self.text)


def has_one_place(template: str) -> bool:
    """Whether a template holds ``{}`` once, and no other braces, in which ``format`` looks for names."""
    rest = template.replace("{}", "")
    return template.count("{}") == 1 and "{" not in rest and "}" not in rest


@dataclass(frozen=True)
class Generation:
    """How answers are generated.

    Attributes:
        beams: width of the beam search.
        max_new_tokens: length of the longest answer, in tokens.
        min_new_tokens: length of the shortest answer, in tokens.
        length_penalty: exponent of the length in the score of a beam.
    """

    beams: int = 1
    max_new_tokens: int = 10
    min_new_tokens: int = 0
    length_penalty: float = 1.0

    def options(self) -> dict[str, Any]:
        """The arguments for transformers' ``generate``."""
        options: dict[str, Any] = {
            "num_beams": self.beams,
            "max_new_tokens": self.max_new_tokens,
            "do_sample": False,
            "logits_processor": [refuse_nan],
        }
        if self.min_new_tokens:
            options["min_new_tokens"] = self.min_new_tokens
        return options | ({"length_penalty": self.length_penalty} if self.beams > 1 else {})


def refuse_nan(input_ids: Tensor, scores: Tensor) -> Tensor:
    """A logits processor for transformers' ``generate``, which would write on as if a NaN were a score.

    An infinity may come from another processor, for a token that must not be written.

    Args:
        input_ids: what is written so far, [texts, tokens].
        scores: of the next token, [texts, vocabulary].

    Raises:
        NumericalError: if a score is NaN.
    """
    if scores.isnan().any():
        raise NumericalError(
            "the model generates from logits that are not finite; use model.dtype=float32 or bfloat16, or"
            " prune less"
        )
    return scores
