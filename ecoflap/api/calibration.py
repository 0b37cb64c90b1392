"""Calibration data: a data set by its name, or whatever is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ecoflap.api.forms import Data, example, read, refuse_targets, texts_of
from ecoflap.api.given import require
from ecoflap.api.inputs import samples_of
from ecoflap.api.parts import part
from ecoflap.api.unchanged import unchanged
from ecoflap.data.batch import Sample
from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.sources import picture_sources
from ecoflap.data.text.bos import bos_token
from ecoflap.data.text.calibration import Text, tokenize, windows
from ecoflap.data.text.prefix import PrefixText
from ecoflap.data.text.source import MOST_BYTES
from ecoflap.errors import UserError, require_positive
from ecoflap.models.core.encoding import encode_all, pad_together
from ecoflap.models.core.pictures import ImageInMemory
from ecoflap.models.core.protocols import Answers, Encodes
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import at_most, require_length, trained_tokens
from ecoflap.run.config import RunConfig

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
    """Make the calibration set of a model: its inputs, drawn once and read by every later step.

    Args:
        model: from ``ecoflap.load``.
        data: one of

            - the name of a data set, as ``calibration=`` of the command line: ``"wikitext2"``, ``"c4"``,
              ``"coco"``, ``"easy_vqa"``, ...;
            - texts: a list of str, or dicts with ``text``. A language model reads windows of all of them
              together; an encoder-decoder reads the beginning of a line and writes the rest;
            - raw examples: dicts with ``image`` (a path, or a picture of Pillow's), ``text`` (a question) and
              ``target`` (the answer), with a ``caption`` alone, with a ``label``, or with ``text`` and
              ``target``, as the model takes them;
            - model inputs: dicts of tensors for one sample each or with a batch dimension, with or without
              ``labels``. Padding that an ``attention_mask`` marks is left out.

            Texts, examples and inputs may come as a list, a ``datasets.Dataset``, a ``DataLoader`` or any
            other iterable, which is read once.
        samples: how many; null for the data set's own number, or 128. Of examples and inputs, the first
            ones; windows are drawn at random.
        sequence_length: tokens of a window; null for the data set's own, or for 512 or as many as the model
            reads or the texts have.
        seed: of the draw.
        options: of a data set by its name, such as ``path="train.txt"``.

    Raises:
        UserError: if there is no such data set or option, the form of the data isn't known, or the model
            can't read them.
    """
    numbers = {"samples": samples, "sequence_length": sequence_length}
    given = {name: value for name, value in numbers.items() if value is not None}
    require(model, PrunableModel, "ecoflap.load")
    if isinstance(data, CalibrationSet):
        return data if samples is None else data.take(Amount(samples).samples)
    with unchanged(model.module, model.processor):
        if isinstance(data, str) or hasattr(data, "check_model"):
            calibrator = part("calibration", data, {**given, **options})
            found: CalibrationSet = calibrator.load(model, seed)
        elif options:
            raise UserError(
                f"{', '.join(options)}: data in memory have no such option, only samples and sequence_length"
            )
        else:
            found = _in_memory(
                model, data, Amount(Text.samples if samples is None else samples, sequence_length), seed
            )
    if not len(found):
        raise UserError(f"the data ({found.name}) gave no samples; give more, or samples=1 at least")
    return found


@dataclass(frozen=True)
class Amount:
    """How much is read.

    Attributes:
        samples: at most.
        sequence_length: tokens of a window; null for what there is.
    """

    samples: int
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples", "sequence_length")


def _in_memory(model: PrunableModel, given: Any, amount: Amount, seed: int) -> CalibrationSet:
    data = read(given)
    if data.form == "inputs":
        made = _samples(model, data.items)
        return CalibrationSet(NAME, pad_together(model, tuple(islice(made, amount.samples))))
    if not isinstance(model.interface, Encodes):
        return _windows(model, data, amount, seed)
    if data.form == "texts" and not getattr(model.interface, "sees", False):
        return _prefixes(model, data, amount, seed)
    if data.form == "texts":
        raise UserError(
            f"{model.name} reads pictures, and the data are texts; give dicts such as"
            ' {"image": ..., "text": ..., "target": ...}'
        )
    return _examples(model, list(islice(data.items, amount.samples)))


def _samples(model: PrunableModel, items: Iterator[Mapping[str, Any]]) -> Iterator[Sample]:
    for item in items:
        yield from samples_of(model, item)


def _windows(model: PrunableModel, data: Data, amount: Amount, seed: int) -> CalibrationSet:
    """Random windows of texts, as ``calibration=wikitext2`` draws them."""
    _require_tokenizer(model)
    trained = trained_tokens(model.module) or Text.sequence_length
    longest = amount.sequence_length or min(at_most(model, Text.sequence_length), trained)
    texts = texts_of(_targetless(data), MOST_BYTES * longest * amount.samples)
    tokens = tokenize(model.processor, Text.separator.join(texts))
    bos = bos_token(model.processor, "calibration.bos", Text.bos)
    length = amount.sequence_length or min(longest, len(tokens) + (bos is not None))
    if length < 2:
        raise UserError(f"the texts have {len(tokens)} tokens, and a loss is over the next one; give more")
    require_length(model, length, f"sequence_length={length}")
    rows = windows(tokens, length, "calibration", bos=bos)
    return CalibrationSet(
        NAME, tuple({"input_ids": row} for row in rows[draw(len(rows), amount.samples, seed)])
    )


def _targetless(data: Data) -> Data:
    def checked() -> Iterator[Any]:
        for item in data.items:
            refuse_targets([] if isinstance(item, str) else [item])
            yield item

    return data._replace(items=checked())


def _require_tokenizer(model: PrunableModel) -> None:
    """Refuse texts where nothing makes tokens of them.

    Raises:
        UserError: if the model has no tokenizer.
    """
    if model.processor is None or not callable(getattr(model.processor, "tokenize", None)):
        raise UserError(
            f"{model.name} has no tokenizer, and the data are raw: give ecoflap.load(model, tokenizer), or"
            " model inputs as data"
        )


@dataclass(frozen=True)
class GivenText(PrefixText):
    """Lines of a text in memory, cut in two."""

    given: str = ""
    name: str = NAME

    @property
    def sources(self) -> frozenset[str]:
        """None: nobody knows where they are from."""
        return frozenset()

    def read_text(self, option: str) -> str:
        """The text."""
        return self.given


def _prefixes(model: PrunableModel, data: Data, amount: Amount, seed: int) -> CalibrationSet:
    """Lines of texts, of which an encoder-decoder reads the beginning and writes the rest."""
    most = MOST_BYTES * PrefixText.max_words * amount.samples
    text = "\n".join(texts_of(data, most))
    return GivenText(samples=amount.samples, given=text).load(model, seed)


def _examples(model: PrunableModel, rows: Sequence[Mapping[str, Any]]) -> CalibrationSet:
    """Raw examples, as the model's interface encodes them."""
    captioned = not isinstance(model.interface, Answers)
    examples = [example(row, captioned) for row in rows]
    sees = bool(getattr(model.interface, "sees", False))
    for number, one in enumerate(examples):
        if sees and one.image is None:
            raise UserError(f"{model.name} reads pictures, and example {number} of the data has no image")
        if not one.target and one.label is None:
            raise UserError(
                f"example {number} of the data has {', '.join(map(str, rows[number]))}, and {model.name} is"
                " scored on what it should write: give a target (or caption, or label)"
            )
    files = [one.image for one in examples if not isinstance(one.image, ImageInMemory)]
    return CalibrationSet(NAME, encode_all(model, examples, "data"), picture_sources(files))
