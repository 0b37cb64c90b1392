"""Options of text: where it comes from, calibration and perplexity."""

from __future__ import annotations

from dataclasses import dataclass, field

BOS = ("auto", "true", "false")
WHOLE, ROWS, STRIPPED = LINES = ("whole", "rows", "stripped")


@dataclass(frozen=True)
class TextSourceOptions:
    """A text: a local file, or else a split of a data set of the hub.

    Attributes:
        path: a UTF-8 text file, or JSON lines (.jsonl, .json, .ndjson, also with .gz); null for the hub.
        dataset: id of the data set on the hub; empty for none, so that a path is needed.
        config: configuration of the data set on the hub; null for its only one.
        split: split of the data set on the hub.
        column: the column, or the key of each JSON line, that holds text.
        revision: branch, tag or commit of the data set on the hub; null for the default branch.
        data_files: the only file of the data set on the hub that is read; null for all of the split.
        documents: how many rows or JSON lines are read, from the first; null for all. A text file that is
            taken as it is has none.
        separator: what stands between rows or JSON lines when they are made one text.
        lines: what the lines of a text file are: whole (one text, taken as it is), rows (each line with its
            end is a row, a blank one an empty row, as on the hub's WikiText) or stripped (each line without
            the spaces around it is a row, as in the hub's Penn Treebank).
    """

    path: str | None = None
    dataset: str = "Salesforce/wikitext"
    config: str | None = "wikitext-2-raw-v1"
    split: str = "test"
    column: str = "text"
    revision: str | None = None
    data_files: str | None = None
    documents: int | None = None
    # WikiText keeps its line ends in the rows; perplexity tables join them with blank lines
    separator: str = "\n\n"
    lines: str = field(default=WHOLE, metadata={"choices": LINES})


@dataclass(frozen=True)
class TextOptions(TextSourceOptions):
    """Calibration on random windows of a text.

    Attributes:
        samples: number of windows.
        sequence_length: tokens per window.
        generated: how many of the samples the dense model generates itself, each after an eighth of a drawn
            one; 0 for none.
        bos: whether a window begins with the tokens that begin texts: auto (as the tokenizer does it), true
            (with its BOS token where it puts none) or false (the text, or each document, does so before
            windows are cut, as in papers on LLaMA).
        name: what logs and result files call it.
    """

    split: str = "train"
    samples: int = 128
    sequence_length: int = 512
    generated: int = 0
    bos: str = field(default="auto", metadata={"choices": BOS})
    name: str = "text"


@dataclass(frozen=True)
class DocumentsOptions(TextOptions):
    """Calibration on random windows of long documents, one of each.

    Attributes:
        samples: number of windows; fewer where there are not so many long documents.
        sequence_length: tokens per window.
        name: what logs and result files call it.
    """

    sequence_length: int = 2048
    name: str = "documents"


@dataclass(frozen=True)
class TokenFileOptions:
    """Calibration on rows of token ids that were drawn before.

    Attributes:
        path: a safetensors file.
        key: the name of an integer tensor [rows, tokens] in it.
        samples: how many rows, from the first, whatever the seed; null for all.
        generated: how many rows the dense model generates itself, each after an eighth of one of the file's;
            they count among the samples. 0 for none.
        name: what logs and result files call it.
    """

    path: str
    key: str
    samples: int | None = None
    generated: int = 0
    name: str = "token_file"


@dataclass(frozen=True)
class PrefixTextOptions(TextSourceOptions):
    """Calibration on paragraphs cut in two, for encoder-decoder models.

    Attributes:
        samples: number of paragraphs.
        max_words: words of a paragraph that are read; the rest is omitted.
        name: what logs and result files call it.
    """

    split: str = "train"
    samples: int = 128
    max_words: int = 200
    name: str = "prefix_text"


@dataclass(frozen=True)
class PrefixDocumentsOptions(PrefixTextOptions):
    """Calibration on documents cut in two, for encoder-decoder models."""

    max_words: int = 50
    name: str = "prefix_documents"


@dataclass(frozen=True)
class TextPerplexityOptions(TextSourceOptions):
    """Perplexity on windows of a text.

    Attributes:
        sequence_length: tokens per window.
        stride: tokens between the starts of two windows; only the last ``stride`` tokens of a window count,
            of the first window all but its first token. A smaller stride gives each token more context and
            takes more windows. Null: windows don't overlap.
        bos: whether a window begins with the tokens that begin texts: auto (as the tokenizer does it), true
            (with its BOS token where it puts none) or false (the text as a whole does so before windows are
            cut, as in papers on LLaMA). They are not scored.
        limit: number of windows, from the first; null for all.
        batch_size: windows per forward pass; changes nothing beyond rounding.
        name: what logs and result files call it.
    """

    sequence_length: int = 2048
    stride: int | None = None
    bos: str = field(default="auto", metadata={"choices": BOS})
    limit: int | None = None
    batch_size: int = 4
    name: str = "wikitext2"


@dataclass(frozen=True)
class TokenPerplexityOptions:
    """Perplexity on rows of token ids from a file.

    Attributes:
        path: a safetensors file.
        key: the name of an integer tensor [rows, tokens] in it.
        limit: number of rows, from the first; null for all.
        batch_size: rows per forward pass; changes nothing beyond rounding.
        name: what logs and result files call it.
    """

    path: str
    key: str
    limit: int | None = None
    batch_size: int = 4
    name: str = "token_perplexity"
