"""The forms of data in memory: texts, raw examples or model inputs, one by one or in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ecoflap.data.calibration_set import draw
from ecoflap.data.files.chat import CHATS, has_chat, is_batch_of_chats
from ecoflap.data.files.columns import COLUMNS, is_question
from ecoflap.data.folder import half_character
from ecoflap.errors import UserError

INPUTS = ("input_ids", "pixel_values", "inputs_embeds", "input_features", "input_values")
COLUMN_NAMES = tuple(name for names in COLUMNS.values() for name in names)
FORMS = (
    'texts, dicts such as {"text": ...} or {"image": ..., "text": ..., "target": ...}, chats: {"messages":'
    " [...]}, or model inputs: dicts of tensors with a batch dimension"
)


class Data(NamedTuple):
    """Data whose form is known.

    Attributes:
        form: texts, examples, chats or inputs.
        items: (place, item) pairs, which can be read once: str, dicts of one example or chat each, or dicts
            of tensors. Places count them or, where data are drawn, what was given.
        length: the number of items; None if unknown.
        given: what was given, by item or batch.
        is_text: whether the first item is a text alone, by itself or in a column.
    """

    form: str
    items: Iterator[tuple[int, Any]]
    length: int | None
    given: Iterable[Any]
    is_text: bool

    def drawn(self, samples: int, seed: int) -> Data:
        """The same in a random order, if there are more items than samples and each can be read by its place.

        What can only be iterated over stays as it is: it is read from its start.
        """
        given: Any = self.given
        by_place = isinstance(given, Sequence) or hasattr(given, "__getitems__")  # as a datasets.Dataset has
        if not by_place or len(given) <= samples:
            return self
        items = ((place, given[place]) for place in draw(len(given), len(given), seed))
        return self._replace(items=_readable(self.form, _single(self.form, items)))


def read(data: Any) -> Data:
    """Find out the form of data by the first item.

    Raises:
        UserError: if the form is unknown, or there are no data.
    """
    given = _given(data)
    items = iter(given)
    try:
        first = next(items)
    except StopIteration:
        raise UserError(f"the data ({type(data).__name__}) are empty; give {FORMS}") from None
    row = _listed(first)[0]
    form = _form(row, "the first")
    is_text = form == "texts" or (form == "examples" and "text" in row and not _has_target(row))
    length = None if isinstance(first, list) else _length(data)
    single = (row for _, row in _single(form, enumerate(chain([first], items))))
    return Data(form, _readable(form, enumerate(single)), length, given, is_text)


def _length(data: Any) -> int | None:
    """The number of items; None if unknown, as of a DataLoader of a stream, whose length raises an error."""
    try:
        return len(data)
    except TypeError:
        return None


def _given(data: Any) -> Iterable[Any]:
    """Data by item; a single batch is one item, and a tensor of token ids as many as it has rows.

    Raises:
        UserError: if the data are not an iterable of items.
    """
    if isinstance(data, Tensor):
        if data.dim() not in (1, 2):
            raise UserError(
                f"the data are a tensor of shape {list(data.shape)}; give token ids of shape [batch, tokens]"
            )
        return [{"input_ids": row} for row in torch.atleast_2d(data)]
    if hasattr(data, "iterrows"):
        raise UserError(f'the data are a {type(data).__name__}; give its rows: data.to_dict("records")')
    if isinstance(data, Mapping):
        splits = [str(name) for name, part in data.items() if hasattr(part, "column_names")]
        if splits:
            raise UserError(f"the data are a dict of splits; choose one, such as data[{splits[0]!r}]")
        return [data]
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Iterable):
        raise UserError(
            f"the data are a {type(data).__name__}, which can't be iterated over; give its rows:"
            " [data[place] for place in range(len(data))], or a DataLoader of it"
        )
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise UserError(f"the data are a {type(data).__name__}; give an iterable of {FORMS}")
    return data


def _form(item: Any, where: str) -> str:
    """The form of an item: texts, examples, chats or inputs.

    Args:
        item: a text or a row.
        where: which one it is, for messages.

    Raises:
        UserError: if it is none of them.
    """
    if isinstance(item, str):
        return "texts"
    if not isinstance(item, Mapping):
        raise UserError(f"{where} of the data is a {type(item).__name__}; give {FORMS}")
    if has_chat(item):
        return "chats"
    only_tensors = bool(item) and all(isinstance(value, Tensor) for value in item.values())
    if only_tensors or any(name in item for name in INPUTS):
        return "inputs"
    if any(name in item for name in COLUMN_NAMES):
        return "examples"
    raise UserError(
        f"{where} of the data has {', '.join(map(str, item)) or 'no columns'}, and none of"
        f" {', '.join((*COLUMN_NAMES, *CHATS))} or of the model inputs {', '.join(INPUTS)}; rename the"
        " columns"
    )


def _listed(item: Any) -> Sequence[Any]:
    """The texts or rows of a batch that is a list of them; a list of anything else."""
    return item if isinstance(item, list | tuple) and item else [item]


def _single(form: str, items: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Split batches of texts, examples and chats into single ones; leave batches of inputs as they are.

    Raises:
        UserError: if an item has another form than the first, or columns of a batch have other lengths.
    """
    for place, item in items:
        where = f"item {place}"
        for row in _listed(item):
            if (found := _form(row, where)) != form:
                raise UserError(
                    f"{where} of the data is one of {found}, and the first ones are {form}; give one form"
                )
            if form == "examples":
                yield from ((place, one) for one in _rows(row, COLUMN_NAMES, where))
            elif form == "chats" and is_batch_of_chats(row):
                yield from ((place, one) for one in _rows(row, tuple(row), where))
            else:
                yield place, row


def _readable(form: str, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Rows whose texts are of whole characters.

    Raises:
        UserError: if a text holds half of one.
    """
    names = (*CHATS, *COLUMNS["text"], *COLUMNS["target"])
    for place, row in rows:
        texts = [row.get(name) for name in names] if form in ("examples", "chats") else row
        if form != "inputs" and (half := half_character(texts)) is not None:
            raise UserError(
                f"row {place} of the data has a text with half of a character, {half}; take it out, such as"
                ' by text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
            )
        yield place, row


def _rows(columns: Mapping[str, Any], names: Sequence[str], where: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a batch whose columns, of those with these names, are lists; a single row as it is.

    Raises:
        UserError: if the columns have other lengths than each other.
    """
    known = [name for name in names if name in columns]
    if not all(_is_column(columns[name]) for name in known):
        yield columns
        return
    lengths = {name: len(columns[name]) for name in known}
    if len(set(lengths.values())) > 1:
        held = ", ".join(f"{length} in {name}" for name, length in lengths.items())
        raise UserError(f"{where} of the data is a batch with {held}; give as many of each")
    for row in range(lengths[known[0]]):
        yield {name: columns[name][row] for name in known}


def _is_column(values: Any) -> bool:
    """Whether these are the values of several examples."""
    return isinstance(values, list) or (isinstance(values, Tensor) and values.dim() > 0)


def _text_of(item: str | Mapping[str, Any]) -> str | None:
    if isinstance(item, str):
        return item
    return next((item[name] for name in COLUMNS["text"] if isinstance(item.get(name), str)), None)


def _has_target(item: str | Mapping[str, Any]) -> bool:
    return not isinstance(item, str) and any(item.get(name) is not None for name in COLUMNS["target"])


def texts_of(data: Data, most: int) -> list[str]:
    """The texts of data; of a stream of unknown length, only as many as have ``most`` bytes.

    Raises:
        UserError: if an item has no text, or a target, which would not be read, or if it is a question, whose
            answer would not be read.
    """
    found: list[str] = []
    size = 0
    for place, item in data.items:
        if _has_target(item) or (isinstance(item, Mapping) and is_question(item)):
            raise UserError(
                f"item {place} of the data has {', '.join(map(str, item))}, and of these data whole texts"
                ' are read; give chats, {"messages": [{"role": "user", "content": ...}, {"role": "assistant",'
                ' "content": ...}]}, whose loss is that of the answer, one text, or model inputs with labels'
            )
        text = _text_of(item)
        if text is None:
            if null := next((name for name in COLUMNS["text"] if name in item and item[name] is None), None):
                raise UserError(f"item {place} of the data has no text: its {null} is null; take it out")
            raise UserError(
                f"a language model reads texts, and item {place} of the data has"
                f" {', '.join(map(str, item))}; give texts, or dicts with {COLUMNS['text'][0]}"
            )
        found.append(text)
        size += len(text.encode())
        if data.length is None and size >= most:
            break
    return found
