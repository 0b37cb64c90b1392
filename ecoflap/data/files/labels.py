"""Labels of rows: a classifier's own number of the class that a data set names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ecoflap.data.example import Example
from ecoflap.errors import UserError, nearest

log = logging.getLogger(__name__)


def names_of_labels(data: Any) -> tuple[str, ...]:
    """The names of the classes in the column label of a ``datasets.Dataset``; none of other data."""
    features = getattr(data, "features", None)
    column = features.get("label") if isinstance(features, Mapping) else None
    return tuple(getattr(getattr(column, "feature", column), "names", ()))  # a column of lists has a feature


class OwnLabels:
    """Rows with the numbers that a classifier has for their classes, by the names of these."""

    def __init__(self, own: Sequence[str], model: str, option: str) -> None:
        """Take the names of the model's classes.

        Args:
            own: in the order of its logits; empty for a model that is no classifier.
            model: its name, for messages.
            option: the option that asks, for messages.
        """
        self.own, self.model, self.option = list(own), model, option
        self._found: dict[tuple[str, ...], list[int | None]] = {}

    def of(self, row: Example, names: Sequence[str], where: str) -> Example:
        """A row with the model's label of its class.

        Where no class of the data set is the model's by its name, as LABEL_0, or either has no names, the
        label is taken for the model's.

        Args:
            row: the row.
            names: of the data set's classes, in the order of the labels; empty if it has none.
            where: the row, for messages.

        Raises:
            UserError: if the model has others of the data set's classes and not this one, or the label is the
                number of none.
        """
        if row.label is None or not self.own:
            return row
        found = self._by_name(tuple(names)) if 0 <= row.label < len(names) else []
        if not any(place is not None for place in found):
            self._require_class(row.label, where)
            return row
        if (label := found[row.label]) is None:
            name = names[row.label]
            raise UserError(
                f"{self.option}: {where} has the label {row.label}, in its data set {name!r}, and"
                f" {self.model} has no such class (nearest: {nearest(name, self.own)}); take such rows out,"
                " or choose another model. If the numbers are the model's whatever their names, store them"
                " without names, as by dataset.cast_column('label', Value('int64'))"
            )
        return replace(row, label=label)

    def _require_class(self, label: int, where: str) -> None:
        """Refuse a label that is the number of no class, such as the -1 of rows without one."""
        if not 0 <= label < len(self.own):
            raise UserError(
                f"{self.option}: {where} has the label {label}, and {self.model} has {len(self.own)} classes,"
                " numbered from 0; take such rows out, or give the numbers of their classes"
            )

    def _by_name(self, names: tuple[str, ...]) -> list[int | None]:
        """The model's label of each class of a data set, None for a class that it hasn't."""
        if names not in self._found:
            own = list(map(_plain, self.own))
            first = {name: place for place, name in reversed(list(enumerate(own)))}
            self._found[names] = [
                place if own[place : place + 1] == [name] else first.get(name)  # a name may stand twice
                for place, name in enumerate(map(_plain, names))
            ]
            if set(self._found[names]) == {None}:
                message = (
                    "%s: %s has no class named like those of the data set (%s, ...); labels stay numbers"
                )
                log.info(message, self.option, self.model, names[0])
        return self._found[names]


def _plain(name: str) -> str:
    """A name of a class without what differs between ways of writing it."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
