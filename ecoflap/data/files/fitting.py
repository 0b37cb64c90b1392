"""Rows that fit a model: what it can't read is refused, or left out and counted."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

from ecoflap.data.conversation import Conversation, Turn
from ecoflap.data.example import Example
from ecoflap.data.files.labels import OwnLabels
from ecoflap.data.image_in_memory import ImageInMemory
from ecoflap.errors import UserError
from ecoflap.models.core.encoding import encode_rows
from ecoflap.models.core.protocols import Classifies, Converses, Encodes, NamesClasses
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import most_tokens

log = logging.getLogger(__name__)


def files_of(rows: Iterable[Example | Conversation]) -> list[str]:
    """The files of the pictures of rows, without those in memory."""
    return [image for row in rows for image in row.images if not isinstance(image, ImageInMemory)]


def is_text(row: Example | Conversation) -> bool:
    """Whether a row is a text without anything else."""
    return isinstance(row, Example) and not (row.target or row.image) and row.label is None


def labels_in(model: PrunableModel, option: str) -> OwnLabels:
    """The labels of a model; a label means something to a classifier alone.

    Args:
        model: of any kind.
        option: the option that asks, for messages.
    """
    own = model.interface.names if isinstance(model.interface, NamesClasses) else ()
    return OwnLabels(own, model.name, option)


def fitting(
    model: PrunableModel, row: Example | Conversation, option: str, where: str
) -> Example | Conversation:
    """A row as the model reads it: for a language model, a question with its answer is a conversation.

    Args:
        model: the model.
        row: the row.
        option: the option that asks, for messages.
        where: the row, for messages.

    Raises:
        UserError: if the row shows pictures to a model that reads only text, or has nothing that the model
            should write.
    """
    if row.images and not model.sees:
        raise UserError(
            f"{option}: {where} has a picture, and {model.name} reads only text; choose another model, or"
            " rows without pictures"
        )
    if isinstance(row, Conversation):
        return row
    require_target(model, row, f"{option}: {where}")
    if isinstance(model.interface, Encodes):
        return row
    asked = (Turn("user", (row.text,)),) if row.text else ()
    return Conversation((*asked, Turn("assistant", (row.target,))))


def require_target(model: PrunableModel, row: Example, where: str) -> None:
    """Refuse a row without what the loss is of: a class for a classifier, and a text for all others.

    Args:
        model: the model.
        row: the row.
        where: the row, for messages.

    Raises:
        UserError: if the row has neither a target nor a label that the model reads.
    """
    classifies = isinstance(model.interface, Classifies)
    if row.target.strip() or (classifies and row.label is not None):
        return
    if row.label is not None:
        raise UserError(
            f"{where} has a label, and {model.name} reads captions or answers; give a target, an answer or a"
            " caption, or choose an image classifier"
        )
    wanted = "a label" if classifies else "a target, an answer or a caption"
    raise UserError(
        f"{where} says nothing that {model.name} should write, and the loss is of that; give it {wanted}"
    )


def chosen(
    model: PrunableModel,
    rows: Iterable[Example | Conversation],
    option: str,
    samples: int | None,
    longest: int | None,
) -> list[Example | Conversation]:
    """The first rows, until there are enough; those that the model doesn't read are left out.

    A model that sees reads only rows with a picture, and a language model no conversation that is too long.

    Args:
        model: the model.
        rows: see ``fitting``; no more are read than needed.
        option: the option that asks, for messages.
        samples: how many rows; None for all.
        longest: the most tokens of a conversation with a language model; None for any number.

    Raises:
        UserError: if the model can't read a row, reads pictures and no row has one, or all are too long.
    """
    blind = 0

    def readable() -> Iterator[Example | Conversation]:
        nonlocal blind
        for row in rows:
            if model.sees and not row.images:
                blind += 1
            else:
                yield row

    found = _short_enough(model, readable(), option, samples, longest)
    if not found:
        raise UserError(
            f"{option}: {model.name} reads pictures, and none of the {blind} rows has one; give rows with"
            " image or images, or name their column with calibration.image_column=NAME"
        )
    if blind:
        log.info("%s: %d rows without a picture are left out", option, blind)
    return found


def _short_enough(
    model: PrunableModel,
    rows: Iterable[Example | Conversation],
    option: str,
    samples: int | None,
    longest: int | None,
) -> list[Example | Conversation]:
    """The first rows, until there are enough, without conversations too long for a language model.

    Raises:
        UserError: if the model can't read a row, or all are too long.
    """
    limits = [limit for limit in (longest, most_tokens(model.module)) if limit is not None]
    if isinstance(model.interface, Encodes) or not limits:
        return list(islice(rows, samples))
    found: list[Example | Conversation] = []
    long: list[int] = []
    for row in rows:
        tokens = len(encode_rows(model, [row], option)[0]["input_ids"])
        if tokens > min(limits):
            long.append(tokens)
            continue
        found.append(row)
        if len(found) == samples:
            break
    if long and not found:
        raise UserError(
            f"{option}: all {len(long)} chats have more than {min(limits)} tokens, the shortest {min(long)};"
            " set a larger sequence_length, or give shorter chats"
        )
    if long:
        is_fewer = samples is not None and len(found) < samples < sys.maxsize  # which is all rows
        log.log(
            logging.WARNING if is_fewer else logging.INFO,
            "%s: %d of %d chats have more than %d tokens and are left out%s",
            option,
            len(long),
            len(long) + len(found),
            min(limits),
            f"; {len(found)} remain, and samples={samples} asks for more" if is_fewer else "",
        )
    return found


def require_reader(model: PrunableModel, option: str) -> None:
    """Refuse a model that reads neither questions nor conversations.

    Raises:
        UserError: if the model has no tokenizer or processor that does.
    """
    if not isinstance(model.interface, Encodes | Converses):
        raise UserError(
            f"{option} has rows, and {model.name} has no tokenizer or processor that encodes them; choose"
            " another model"
        )
