"""What an evaluation knows of its items beside its metrics: their scores, and how the answers read."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.data.example import Example
from ecoflap.models.core.pictures import load_image
from ecoflap.storage.files import replacing

SHOWN = 12
"""Examples that are kept for reports."""
SIDE = 224
"""The longest side of their pictures, in pixels."""
SMALL = 96
"""Pictures up to this side are kept without loss."""


@dataclass(frozen=True)
class Items:
    """The items of one evaluation of one model.

    Attributes:
        metric: the metric that the scores are the items' shares of.
        scores: the score of each item; empty if the metric is not a mean over items, such as BLEU.
        exponential: whether the metric is exp of the scores' mean, not their mean in percent.
        answers: what the model answered to each item, in words; empty if it wrote none.
        examples: the items; empty if they have no pictures.
        passage: tokens of a text, each with its loss in nats.
    """

    metric: str
    scores: Sequence[float]
    exponential: bool = False
    answers: Sequence[str] = ()
    examples: Sequence[Example] = ()
    passage: Sequence[tuple[str, float]] = ()

    def to_json(self) -> dict[str, Any]:
        """All but the examples, which the data set has."""
        return {
            "metric": self.metric,
            "exponential": self.exponential,
            "scores": [round(float(score), 6) for score in self.scores],
            "answers": list(self.answers),
            "passage": [[token, round(loss, 4)] for token, loss in self.passage],
        }


def write_items(file: Path, dense: dict[str, Any] | None, pruned: Items) -> None:
    """Write the scores of both models, and the examples and the passage on which they differ most.

    Args:
        file: the file, JSON.
        dense: ``to_json`` of the dense model's items; None if they are not known.
        pruned: the pruned model's items.
    """
    after = pruned.to_json()
    known = dense if dense is not None and len(dense["scores"]) == len(after["scores"]) else None
    record = {
        "metric": pruned.metric,
        "exponential": pruned.exponential,
        "dense": None if known is None else known["scores"],
        "pruned": after["scores"],
        "examples": [] if known is None else _examples(known, after, pruned.examples),
        "passage": [] if known is None else _passage(known["passage"], after["passage"]),
    }
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")


def _examples(
    dense: dict[str, Any], pruned: dict[str, Any], examples: Sequence[Example]
) -> list[dict[str, Any]]:
    """The examples whose score fell most; of equal ones, those whose answers share the fewest words."""

    def change(place: int) -> tuple[float, float]:
        fallen = dense["scores"][place] - pruned["scores"][place] if pruned["scores"] else 0.0
        before, after = (set(model["answers"][place].split()) for model in (dense, pruned))
        return fallen, -len(before & after) / max(len(before | after), 1)

    places = sorted(range(len(examples)), key=change, reverse=True)[:SHOWN]
    return [
        {
            "question": examples[place].text,
            "right": examples[place].target,
            "dense": dense["answers"][place],
            "pruned": pruned["answers"][place],
            "picture": _data_uri(examples[place].image),
        }
        for place in places
    ]


def _passage(dense: Sequence[Any], pruned: Sequence[Any]) -> list[list[Any]]:
    """[token, dense loss, pruned loss] of each token."""
    return [[token, before, after] for (token, before), (_, after) in zip(dense, pruned, strict=False)]


def _data_uri(path: str | None) -> str | None:
    """A small copy of a picture, as the address of an image on a page."""
    if path is None:
        return None
    picture = load_image(path)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    kind = "png" if max(picture.size) <= SMALL else "jpeg"
    picture.save(buffer, kind, quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
