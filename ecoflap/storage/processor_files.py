"""The files of a tokenizer or processor in a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "tekken.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
"""Patterns of the files that transformers' tokenizers and processors write.

Files that only a few tokenizers know are not among them, as no other tokenizer reads those.
"""


def processor_files(folder: Path) -> list[Path]:
    """The files of a tokenizer or processor in a folder, sorted."""
    found = (path for pattern in PROCESSOR_FILES for path in folder.glob(pattern))
    return sorted(path for path in found if path.is_file())
