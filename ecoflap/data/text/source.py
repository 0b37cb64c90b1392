"""The source of a text: a local file or a data set of the hub, read as one text or by document."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path

from ecoflap.data.folder import JSON_ENDINGS, NOT_UTF8, UTF8, is_packed, parse_json, read_text
from ecoflap.data.hub import load_split
from ecoflap.data.sources import file_source
from ecoflap.data.text.options import LINES, STRIPPED, WHOLE, TextSourceOptions
from ecoflap.errors import UserError, nearest, require_choice

MOST_BYTES = 32  # of a token, on average over a text


@dataclass(frozen=True)
class TextSource(TextSourceOptions):
    """A text: a local file, or else a split of a data set of the hub."""

    @property
    def sources(self) -> frozenset[str]:
        """The name of the file, or of the splits or the file of the hub's data set; a slice is its split."""
        if self.path is not None:
            return file_source(self.path)
        read = self.splits if self.data_files is None else [self.data_files]
        return frozenset(" ".join(filter(None, (self.dataset, self.config, one))) for one in read)

    @property
    def splits(self) -> list[str]:
        """The names of the splits that are read, or of which a slice is."""
        return [part.partition("[")[0].strip() for part in self.split.split("+")]

    def read_text(self, option: str) -> str:
        """Read the whole text.

        Args:
            option: the config group of the part, for the message.

        Raises:
            UserError: if the file or the data set is missing, or a line holds no text.
        """
        if self.path is None or self._has_rows:
            return self.separator.join(self.read_documents(option))
        return read_text(_existing(self.path, option))

    def read_documents(self, option: str) -> Sequence[str]:
        """Read the text document by document: rows, or the parts of a whole file between blank lines.

        Args:
            option: the config group of the part, for the message.

        Raises:
            UserError: if the file or the data set is missing, or a line holds no text.
        """
        if self.path is None:
            return self._read_hub(option)
        file = _existing(self.path, option)
        if _holds_json(self.path):
            return list(islice(_json_texts(file, self.column, option), self.documents))
        if self._has_rows:
            require_choice(f"{option}.lines", self.lines, LINES)
            rows = _lines(read_text(file), stripped=self.lines == STRIPPED)
            return list(islice(rows, self.documents))
        return [part for part in read_text(file).split("\n\n") if part.strip()]

    def check_data(self, option: str) -> None:
        """Refuse a text that is missing, unreadable or too short, judging by its bytes.

        Args:
            option: the config group of the part, for the message.

        Raises:
            UserError: if the text is missing, unreadable or too short.
        """
        texts = self.read_documents(option) if self._has_rows else [self.read_text(option)]
        if not any(map(str.strip, texts)):
            raise UserError(
                f"{option}.path={self.path}: there is no text in it; give a text file, or JSON lines with"
                " texts"
            )
        self.check_length(texts, option)

    def is_short(self, length: int, option: str) -> bool:
        """Whether the text is a file so small that it may lack the tokens, and is tokenised at once."""
        return self.path is not None and _existing(self.path, option).stat().st_size < MOST_BYTES * length

    def check_length(self, texts: Sequence[str], option: str) -> None:
        """Refuse a text, as one or as documents, that is too short for its windows."""

    @property
    def _has_rows(self) -> bool:
        """Whether the source consists of rows; else it is one text."""
        return self.path is None or _holds_json(self.path) or self.lines != WHOLE

    def _read_hub(self, option: str) -> Sequence[str]:
        if not self.dataset:
            raise UserError(f"{option}=text is a text of your own: give its file with {option}.path=FILE")
        if "all" in self.splits:
            raise UserError(
                f"{option}.split={self.split} hides which splits are read, and with them whether a model is"
                " measured on what it was calibrated with; name them, such as train+validation"
            )
        files = None if self.data_files is None else {self.split: self.data_files}
        which = ", ".join(filter(None, (self.config, self.data_files, self.split)))
        rows = load_split(
            self.dataset,
            self.config,
            self.split,
            asked=f"{option}: the data set {self.dataset} ({which})",
            instead=f"a local text file with {option}.path=FILE",
            revision=self.revision,
            data_files=files,
        )
        if self.documents is not None:
            rows = rows.select(range(min(self.documents, len(rows))))
        if self.column not in rows.column_names:
            raise UserError(
                f"{option}.column={self.column}: {self.dataset} has {nearest(self.column, rows.column_names)}"
            )
        kind, missing = rows.features[self.column], rows.data.column(self.column).null_count
        if missing or getattr(kind, "dtype", None) not in ("string", "large_string"):
            raise UserError(
                f"{option}.column={self.column}: {self.dataset} ({which}) has {kind} there, and null in"
                f" {missing} of {len(rows)} rows, where each needs a text; name another column, or read fewer"
                f" rows with {option}.documents"
            )
        texts: Sequence[str] = rows[self.column]
        return texts


def _holds_json(path: str) -> bool:
    return path.lower().endswith(JSON_ENDINGS)


def _lines(text: str, stripped: bool) -> Iterator[str]:
    """The rows that the hub's WikiText, or its Penn Treebank (stripped), has for the lines of its files."""
    for line in StringIO(text):  # ends lines at line feeds alone
        yield line.strip() if stripped or not line.strip() else line


def _existing(path: str, option: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        beside = sorted(entry.name for entry in file.parent.iterdir()) if file.parent.is_dir() else []
        hint = (
            f"in that folder: {nearest(file.name, beside)}" if beside else f"there is no folder {file.parent}"
        )
        raise UserError(f"{option}.path={path}: there is no such file; {hint}")
    return file


def _json_texts(file: Path, column: str, option: str) -> Iterator[str]:
    """The texts of JSON lines that are not blank, read lazily: a shard of C4 has hundreds of thousands."""
    number = 0
    try:
        with gzip.open(file, "rt", encoding=UTF8) if is_packed(file) else file.open(encoding=UTF8) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_text(line, column, option, f"{option}.path={file}, line {number}")
    except UnicodeDecodeError:
        raise UserError(f"{option}.path={file}, behind line {number}, {NOT_UTF8}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{option}.path={file} can't be read behind line {number} ({error}); download it again"
        ) from None


def _json_text(line: str, column: str, option: str, where: str) -> str:
    """The text of a JSON line.

    Raises:
        UserError: if it has none.
    """
    wanted = f"{where}: expected a JSON object whose {column!r} is a text ({option}.column names it)"
    try:
        row = parse_json(line)
    except ValueError as error:
        raise UserError(
            f"{wanted}, and it is no JSON ({error}); a plain text has another ending than .json, .jsonl or"
            " .ndjson"
        ) from None
    text = row.get(column) if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = f"is a {type(row).__name__}"
        if isinstance(row, dict):
            found = f"has {nearest(column, row) or 'no keys'}"
        raise UserError(f"{wanted}, and it {found}")
    return text
