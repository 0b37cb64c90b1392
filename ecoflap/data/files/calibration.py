"""Calibration on rows of one's own files: JSON, Parquet or tar shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.conversation import Conversation
from ecoflap.data.example import Example
from ecoflap.data.files import json_rows, parquet, webdataset
from ecoflap.data.files.chat import conversation, has_chat
from ecoflap.data.files.columns import COLUMNS, example, is_question
from ecoflap.data.files.fitting import chosen, files_of, fitting, is_text, labels_in, require_reader
from ecoflap.data.files.names import KINDS, named
from ecoflap.data.files.options import ChatOptions, ParquetOptions, RowsOptions, WebDatasetOptions
from ecoflap.data.files.pictures import IN_ROW, Locate, locate, look_up
from ecoflap.data.files.rows import Row, Rows, find_files
from ecoflap.data.files.texts import beginning, of_texts
from ecoflap.data.folder import JSON_ENDINGS
from ecoflap.data.sources import file_source, picture_sources
from ecoflap.errors import UserError, require_choices, require_positive
from ecoflap.models.core.encoding import encode_rows
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class RowsCalibration(RowsOptions, ABC):
    """Rows of files of one kind; what a row holds tells how it is read."""

    endings: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples", "sequence_length")
        require_choices("calibration", self)
        if self.sequence_length == 1:
            raise UserError("calibration.sequence_length=1: a loss is over the next token; choose 2 or more")

    @abstractmethod
    def open(self, files: Sequence[Path]) -> Rows:
        """The rows of files of this kind.

        Raises:
            UserError: if a file is damaged, or of another kind.
        """

    def check_data(self, group: str) -> None:
        """Refuse files that are missing or empty, and a first row that can't be understood.

        Raises:
            UserError: if files are missing or empty, or the first row isn't understood.
        """
        self.first(self.rows())

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that reads no such rows, judging by the first one.

        Raises:
            UserError: if the model reads no such rows.
        """
        require_reader(model, f"calibration={self.name}")
        first = self.first(self.rows())
        if first.images and not model.sees:
            raise UserError(
                f"calibration={self.name}: its rows show pictures, and {model.name} reads only text; choose"
                " another model, or give rows without pictures"
            )
        if is_text(first) and model.sees:
            raise UserError(
                f"calibration={self.name}: its rows are texts, and {model.name} reads pictures; give rows"
                " with an image and an answer or caption, or choose another calibration"
            )

    def check_rows(self, model: PrunableModel, seed: int) -> None:
        """Refuse rows among those that this seed draws; pictures are looked up and not opened.

        Raises:
            UserError: if ``load`` refuses a row for anything but the pixels of a picture.
        """
        rows = self.rows()
        if is_text(self.first(rows)):
            for _ in beginning(self._texts(rows, seed), self.samples, self.sequence_length):
                pass
        else:
            self._drawn(model, rows, seed, look_up)

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw rows and encode them.

        Raises:
            UserError: if files or pictures are missing, or the model can't read a row that was drawn.
        """
        self.check_model(model)
        rows = self.rows()
        if is_text(self.first(rows)):
            texts = self._texts(rows, seed)
            return of_texts(model, texts, self.samples, self.sequence_length, self.name, self.sources, seed)
        found = self._drawn(model, rows, seed)
        samples = encode_rows(model, found, f"calibration={self.name}")
        shown = picture_sources(image for row in found for image in row.images)
        return CalibrationSet(self.name, samples, self.sources | shown)

    def read_files(self, model: PrunableModel, seed: int) -> list[Path]:
        """The files that ``load`` reads: those of the rows, and the pictures of the rows that it draws.

        Raises:
            UserError: as for ``load``; no picture is opened.
        """
        rows = self.rows()
        if is_text(self.first(rows)) or not model.sees:
            return self.files
        drawn = self._drawn(model, rows, seed, look_up)
        return [*self.files, *(Path(image) for image in files_of(drawn) if image != IN_ROW)]

    @property
    def files(self) -> list[Path]:
        """The files that are read.

        Raises:
            UserError: if there are none.
        """
        return find_files(self.path, self.split, self.endings, self.name)

    @property
    def sources(self) -> frozenset[str]:
        """The names of the files."""
        return frozenset().union(*(file_source(str(file)) for file in self.files))

    def rows(self) -> Rows:
        """All rows.

        Raises:
            UserError: if there are no files, or no rows in them.
        """
        files = self.files
        found = self.open(files)
        if not len(found):
            names = ", ".join(map(str, files[:3])) + (", ..." if len(files) > 3 else "")
            raise UserError(f"calibration={self.name}: {names} has no rows; give another file")
        return found

    def first(self, rows: Rows) -> Example | Conversation:
        """What the first of the rows holds.

        Raises:
            UserError: if it isn't understood.
        """
        return self.parsed(rows.read([0])[0])

    def parsed(self, row: Row, locate: Locate = locate) -> Example | Conversation:
        """What a row holds, with its pictures as ``locate`` finds them.

        Raises:
            UserError: if its columns are unknown, a value is of a wrong kind, or all it has is a question.
        """
        values = named(row, {kind: getattr(self, f"{kind}_column") for kind in KINDS})
        folder = row.folder if self.images is None else Path(self.images).expanduser()
        if has_chat(values):
            return conversation(values, folder, row.where, locate, self.turns)
        pictured = any(values.get(name) is not None for name in COLUMNS["image"])
        found = example(values, pictured, folder, row.where, locate)
        if is_text(found) and is_question(values):
            raise UserError(
                f"{row.where} says nothing that a model should write: it has {', '.join(map(str, values))},"
                " and a question needs an answer; name its column with calibration.target_column=NAME, or"
                " that of a text with calibration.text_column"
            )
        return found

    def _drawn(
        self, model: PrunableModel, rows: Rows, seed: int, locate: Locate = locate
    ) -> list[Example | Conversation]:
        """Rows in a random order, see ``chosen``.

        Raises:
            UserError: if the model can't read a row, reads pictures and no row has one, or all are too long.
        """
        option = f"calibration={self.name}"
        shuffled, labels = self._shuffled(rows, seed), labels_in(model, option)

        def read(row: Row) -> Example | Conversation:
            one = self.parsed(row, locate)
            labelled = labels.of(one, row.classes, row.where) if isinstance(one, Example) else one
            return fitting(model, labelled, option, row.where)

        return chosen(model, map(read, shuffled), option, self.samples, self.sequence_length)

    def _shuffled(self, rows: Rows, seed: int) -> Iterator[Row]:
        """All rows in a random order, read in parts of as many as are wanted."""
        order = draw(len(rows), len(rows), seed)
        size = min(self.samples or 1024, 1024)
        for start in range(0, len(order), size):
            yield from rows.read(order[start : start + size])

    def _texts(self, rows: Rows, seed: int) -> Iterator[str]:
        """Texts of rows in a random order.

        Raises:
            UserError: if a row is not a text.
        """
        for row in self._shuffled(rows, seed):
            one = self.parsed(row)
            if not (isinstance(one, Example) and is_text(one)):
                raise UserError(f"{row.where} is not text alone, as the first row is; give rows of one kind")
            yield one.text


@dataclass(frozen=True)
class Chat(ChatOptions, RowsCalibration):
    """Rows of JSON files."""

    endings: ClassVar[tuple[str, ...]] = JSON_ENDINGS

    @override
    def open(self, files: Sequence[Path]) -> Rows:
        return json_rows.JsonRows(files)


@dataclass(frozen=True)
class Parquet(ParquetOptions, RowsCalibration):
    """Rows of Parquet files."""

    endings: ClassVar[tuple[str, ...]] = parquet.ENDINGS

    @override
    def open(self, files: Sequence[Path]) -> Rows:
        return parquet.ParquetRows(files, self.label_column or KINDS["label"][0])


@dataclass(frozen=True)
class WebDataset(WebDatasetOptions, RowsCalibration):
    """Samples of tar shards."""

    endings: ClassVar[tuple[str, ...]] = webdataset.ENDINGS

    @override
    def open(self, files: Sequence[Path]) -> Rows:
        return webdataset.WebDatasetRows(files)
