"""Calibration: draw a set from a data set by its name, or from data in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ecoflap.api.forms import Data, read, texts_of
from ecoflap.api.given import require
from ecoflap.api.inputs import samples_of
from ecoflap.api.parts import names, part
from ecoflap.api.paths import refuse_path
from ecoflap.api.readable import check_given
from ecoflap.api.unchanged import default_cpu, unchanged
from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.conversation import Conversation
from ecoflap.data.example import Example
from ecoflap.data.files.chat import conversation
from ecoflap.data.files.columns import example
from ecoflap.data.files.fitting import chosen, fitting, labels_in, require_reader, require_target
from ecoflap.data.files.labels import names_of_labels
from ecoflap.data.sources import picture_sources
from ecoflap.data.text.bos import first_tokens
from ecoflap.data.text.calibration import Text
from ecoflap.data.text.prefix import GivenText, PrefixText
from ecoflap.data.text.reading import tokenize, windows
from ecoflap.data.text.source import MOST_BYTES
from ecoflap.errors import UserError, require_positive, require_seed
from ecoflap.models.core.encoding import encode_all, encode_rows, pad_together
from ecoflap.models.core.protocols import Answers, Encodes
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length, trained_tokens, window_tokens
from ecoflap.run.config import RunConfig

log = logging.getLogger(__name__)

NAME = "in_memory"


def calibrate(
    model: PrunableModel,
    data: Any,
    *,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = RunConfig.seed,
    **options: Any,
) -> CalibrationSet:
    """Draw the calibration set of a model: the inputs that all later steps use.

    Args:
        model: from ``ecoflap.load``.
        data: one of

            - the name of a data set, as for ``calibration=`` on the command line: ``"wikitext2"``, ``"c4"``,
              ``"coco"``, ``"easy_vqa"``, ...;
            - texts: a list of str, or dicts with ``text``. A language model reads random windows of all texts
              joined; an encoder-decoder reads the first part of a line and predicts the rest;
            - raw examples: dicts with ``image`` (a path or a Pillow image), ``text`` (a question) and
              ``target`` (the answer), with a ``caption`` alone, with a ``label``, or with ``text`` and
              ``target``, depending on the model;
            - chats: dicts with ``messages`` or ``conversations``, and ``image`` or ``images``; the loss is
              that of the last answer;
            - model inputs: dicts of tensors, of one sample each or, always under names of your own, with a
              batch dimension, with or without ``labels``. Padding is removed: what an ``attention_mask``
              marks, and what a decoder of its own reads behind the last label. A mask of padding that can't
              be removed is refused.

            Texts, examples and inputs may come as a list, a ``datasets.Dataset``, a ``DataLoader`` or any
            other iterable, which is read once.
        samples: number of samples; None for the data set's default, or 128. These are random windows of
            texts. Of more examples, chats or inputs, the seed draws as many from a list or a
            ``datasets.Dataset``; any other iterable, and a batch, is read from its start.
        sequence_length: tokens per window of texts, and the most tokens of a chat, for a decoder language
            model; None for the data set's default, or, of windows, 512, but no more than the model reads and
            the texts have. Other data in memory keep their lengths, and it is refused.
        seed: seed of the draw.
        options: options of a named data set, such as ``path="train.txt"``.

    Raises:
        UserError: if there is no such data set or option, the form of the data is unknown, or the model can't
            read them.
    """
    numbers = {"samples": samples, "sequence_length": sequence_length}
    given = {name: value for name, value in numbers.items() if value is not None}
    require(model, PrunableModel, "ecoflap.load")
    seed = require_seed(seed)
    if isinstance(data, CalibrationSet):
        if ignored := [name for name in (*given, *options) if name != "samples"]:
            raise UserError(
                f"{', '.join(ignored)}: the samples of a CalibrationSet are drawn already, and only samples="
                " takes fewer of them; give the data that it was drawn from instead"
            )
        taken = data if samples is None else data.take(Amount(samples).samples)
        check_given(model, taken)
        return taken
    with unchanged(model.module, model.processor), default_cpu():
        if isinstance(data, str) and data not in (known := names("calibration")):
            refuse_path(data, known)
        if isinstance(data, str) or hasattr(data, "check_model"):
            calibrator = part("calibration", data, {**given, **options})
            found: CalibrationSet = calibrator.load(model, seed)
        elif options:
            raise UserError(
                f"{', '.join(options)}: these options only apply to a named data set; in-memory data takes"
                " samples= and sequence_length="
            )
        else:
            amount = Amount(Text.samples if samples is None else samples, sequence_length)
            found = _in_memory(model, data, amount, seed)
    if samples is not None and samples > len(found) > 0:
        log.warning("samples=%d was asked for and there are only %d", samples, len(found))
    if not len(found):
        raise UserError(f"the data ({found.name}) gave no samples; give more, or samples=1 at least")
    check_given(model, found)
    return found


@dataclass(frozen=True)
class Amount:
    """How much data to draw.

    Attributes:
        samples: maximum number of samples.
        sequence_length: tokens per window; None for as many as model and texts allow.
    """

    samples: int
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples", "sequence_length")


def _in_memory(model: PrunableModel, given: Any, amount: Amount, seed: int) -> CalibrationSet:
    """Draw a calibration set from data in memory."""
    data = read(given)
    if amount.sequence_length is not None and (data.form == "inputs" or isinstance(model.interface, Encodes)):
        raise UserError(
            f"sequence_length={amount.sequence_length}: it is for texts and chats that a decoder language"
            f" model reads, and the data are {data.form} for {model.name}; leave it out, or shorten the data"
        )
    if data.form == "inputs":
        items = data.drawn(amount.samples, seed).items
        made = tuple(islice(_samples(model, items), amount.samples))
        return CalibrationSet(NAME, pad_together(model, made))
    if data.form == "chats":
        return _chats(model, data.drawn(amount.samples, seed), amount)
    if not isinstance(model.interface, Encodes):
        return _windows(model, data, amount, seed)
    if not model.sees and data.is_text:
        return _prefixes(model, data, amount, seed)
    if data.form == "texts":
        raise UserError(
            f"{model.name} reads pictures, and the data are texts; give dicts such as"
            ' {"image": ..., "text": ..., "target": ...}'
        )
    drawn = list(islice(data.drawn(amount.samples, seed).items, amount.samples))
    return _examples(model, drawn, names_of_labels(given))


def _samples(model: PrunableModel, items: Iterator[tuple[int, Mapping[str, Any]]]) -> Iterator[Sample]:
    for _, item in items:
        yield from samples_of(model, item)


def _windows(model: PrunableModel, data: Data, amount: Amount, seed: int) -> CalibrationSet:
    """Draw random windows of texts, as ``calibration=wikitext2`` does."""
    _require_tokenizer(model)
    longest = amount.sequence_length or window_tokens(model, Text.sequence_length)
    texts = texts_of(data, MOST_BYTES * longest * amount.samples)
    tokens = tokenize(model.processor, Text.separator.join(texts))
    first = first_tokens(model.processor, "calibration.bos", Text.bos)
    length = amount.sequence_length or min(longest, len(first) + len(tokens))
    if length < 2:
        raise UserError(f"the texts have {len(tokens)} tokens, and a loss is over the next one; give more")
    if length < longest:
        log.warning("the texts have only %d tokens, less than one window of %d", len(tokens), longest)
    require_length(model, length, f"sequence_length={length}")
    rows = windows(tokens, length, "calibration", first=first)
    chosen = rows[draw(len(rows), amount.samples, seed)]
    return CalibrationSet(NAME, tuple({"input_ids": row} for row in chosen))


def _require_tokenizer(model: PrunableModel) -> None:
    """Refuse texts without a tokenizer.

    Raises:
        UserError: if the model has no tokenizer.
    """
    if model.processor is None or not callable(getattr(model.processor, "tokenize", None)):
        raise UserError(
            f"{model.name} has no tokenizer, and the data are raw: give ecoflap.load(model, tokenizer), or"
            " model inputs as data"
        )


def _prefixes(model: PrunableModel, data: Data, amount: Amount, seed: int) -> CalibrationSet:
    """Draw lines of texts for an encoder-decoder, which reads the first part and predicts the rest."""
    most = MOST_BYTES * PrefixText.max_words * amount.samples
    text = "\n".join(texts_of(data, most))
    return GivenText(name=NAME, samples=amount.samples, given=text).load(model, seed)


def _chats(model: PrunableModel, data: Data, amount: Amount) -> CalibrationSet:
    """Encode chats; the loss is that of their last answers."""
    require_reader(model, "data")

    def rows() -> Iterator[Example | Conversation]:
        for place, row in data.items:
            where = f"row {place} of the data"
            yield fitting(model, conversation(row, None, where), "data", where)

    longest = amount.sequence_length or trained_tokens(model.module)
    found = chosen(model, rows(), "data", amount.samples, longest)
    shown = picture_sources(image for row in found for image in row.images)
    return CalibrationSet(NAME, encode_rows(model, found, "data"), shown)


def _examples(
    model: PrunableModel, rows: Sequence[tuple[int, Mapping[str, Any]]], classes: Sequence[str]
) -> CalibrationSet:
    """Encode raw examples, whose labels number the classes of these names, with the model's interface."""
    captioned = not isinstance(model.interface, Answers)
    examples = [example(row, captioned, where=f"example {place} of the data") for place, row in rows]
    for (place, row), one in zip(rows, examples, strict=True):
        if model.sees and one.image is None:
            raise UserError(f"{model.name} reads pictures, and example {place} of the data has no image")
        require_target(model, one, f"example {place} of the data ({', '.join(map(str, row))})")
    labels = labels_in(model, "data")
    labelled = [
        labels.of(one, classes, f"example {place} of the data")
        for (place, _), one in zip(rows, examples, strict=True)
    ]
    shown = picture_sources(one.image for one in examples)
    return CalibrationSet(NAME, encode_all(model, labelled, "data"), shown)
