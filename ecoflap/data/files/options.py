"""Options of calibration on rows of one's own files."""

from __future__ import annotations

from dataclasses import dataclass, field

TURNS = ("all", "first")


@dataclass(frozen=True)
class RowsOptions:
    """Calibration on rows of files: chats, questions with answers, pictures with captions, or texts.

    Attributes:
        path: a file, a folder of files, or a pattern such as FOLDER/train-*.
        split: which files of a folder, where their folders or names say train, validation, test, ..., or any
            part of their names.
        images: the folder that paths of pictures start from; null for that of the file.
        chat_column: the column with the turns; null for conversations or messages.
        image_column: the column with the picture or pictures; null for image or images.
        text_column: the column with the question or text; null for text or question.
        target_column: the column with the answer or caption; null for target, answer or caption.
        label_column: the column with the number of the class; null for label.
        turns: all (the loss is that of the last answer, given all turns before it), or first (of each row
            only what leads to its first answer).
        samples: number of rows, or of windows of a text; null for all rows.
        sequence_length: for language models: tokens per window of a text, and the most tokens of a chat;
            longer chats are left out, and others drawn instead.
        name: what logs and result files call it.
    """

    path: str | None = None
    split: str = "train"
    images: str | None = None
    chat_column: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    target_column: str | None = None
    label_column: str | None = None
    turns: str = field(default="all", metadata={"choices": TURNS})
    samples: int | None = 128
    sequence_length: int = 2048
    name: str = "rows"


@dataclass(frozen=True)
class ChatOptions(RowsOptions):
    """Calibration on rows of JSON or JSON lines: chats as LLaVA and OpenAI write them, or plain columns."""

    name: str = "chat"


@dataclass(frozen=True)
class ParquetOptions(RowsOptions):
    """Calibration on rows of Parquet files, as ``datasets`` and the hub store them, pictures included."""

    name: str = "parquet"


@dataclass(frozen=True)
class WebDatasetOptions(RowsOptions):
    """Calibration on samples of tar shards, whose files share a name: 000.jpg with 000.txt or 000.json."""

    name: str = "webdataset"
