"""Samples of rows that are texts: windows for a language model, lines cut in two for an encoder-decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.text.bos import first_tokens
from ecoflap.data.text.calibration import Text
from ecoflap.data.text.prefix import GivenText
from ecoflap.data.text.reading import tokenize, windows
from ecoflap.data.text.source import MOST_BYTES
from ecoflap.models.core.protocols import Encodes
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length


def of_texts(
    model: PrunableModel,
    texts: Iterable[str],
    samples: int | None,
    sequence_length: int,
    name: str,
    sources: frozenset[str],
    seed: int,
) -> CalibrationSet:
    """Draw windows of all texts together, or, for an encoder-decoder, lines that are cut in two.

    Args:
        model: the model.
        texts: in a random order; no more are read than the windows need.
        samples: number of windows or lines; None for all.
        sequence_length: tokens per window.
        name: of the calibration set.
        sources: of the texts.
        seed: seed of the draw.

    Raises:
        UserError: if the texts are too short, or the windows longer than the model reads.
    """
    read = list(beginning(texts, samples, sequence_length))
    if isinstance(model.interface, Encodes):
        text = "\n".join(read)
        count = samples or text.count("\n") + 1
        return GivenText(name=name, samples=count, given=text, given_sources=sources).load(model, seed)
    require_length(model, sequence_length, f"calibration.sequence_length={sequence_length}")
    tokens = tokenize(model.processor, Text.separator.join(read))
    first = first_tokens(model.processor, "calibration.bos", Text.bos)
    rows = windows(tokens, sequence_length, "calibration", first=first)
    chosen = rows[draw(len(rows), samples or len(rows), seed)]
    return CalibrationSet(name, tuple({"input_ids": row} for row in chosen), sources)


def beginning(texts: Iterable[str], samples: int | None, sequence_length: int) -> Iterator[str]:
    """The first texts, until they have the bytes that so many windows need; all for None samples."""
    most = None if samples is None else MOST_BYTES * sequence_length * samples
    size = 0
    for text in texts:
        yield text
        size += len(text.encode())
        if most is not None and size >= most:
            return
