"""Find the files of a data set and read their texts, or refuse with how to get or mend them."""

from __future__ import annotations

import json
import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError

UTF8 = "utf-8-sig"
"""UTF-8, with a byte order mark or without: Excel, Notepad and PowerShell write one."""
JSON_ENDINGS = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz")
"""Of the names of files of JSON, in small letters."""
NOT_UTF8 = "is not text in UTF-8; convert it to UTF-8, or give another file"
ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")


def require_files(folder: str | None, wanted: str, option: str, name: str, obtain: str) -> Path:
    """The folder of a data set that holds a required file.

    Args:
        folder: the folder in the config; None if the config has none.
        wanted: path or glob pattern of the file.
        option: the config group of the part, such as ``task``.
        name: name of the data set.
        obtain: how to get it, as a sentence.

    Raises:
        UserError: if the file is missing.
    """
    if folder is None:
        raise UserError(
            f"{option}={name} needs the data set's folder: {option}.path=FOLDER with {wanted} in it. {obtain}"
        )
    root = Path(folder).expanduser()
    if not any(root.glob(wanted)):
        found = "no such folder"
        if root.is_dir():
            found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8])
        raise UserError(f"{option}={name}: {wanted} is not in {option}.path={folder} ({found}). {obtain}")
    return root


def require_file(folder: str | None, wanted: str, option: str, name: str, obtain: str) -> Path:
    """A required file, or subfolder, of a data set; see ``require_files``.

    Raises:
        UserError: if it is missing.
    """
    return require_files(folder, wanted, option, name, obtain) / wanted


def require_images(images: Iterable[str], option: str, obtain: str) -> None:
    """Refuse examples with missing pictures before hours of evaluation.

    Args:
        images: paths.
        option: the choice of the part, such as ``task=vqav2``.
        obtain: where to get them.

    Raises:
        UserError: if pictures are missing.
    """
    asked: Sequence[str] = list(dict.fromkeys(images))
    missing = [image for image in asked if not Path(image).is_file()]
    if missing:
        raise UserError(
            f"{option}: {len(missing)} of {len(asked)} pictures are missing, such as {missing[0]}. {obtain}"
        )


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file below a folder is hidden, as Jupyter hides ``.ipynb_checkpoints``, macOS ``._1.png``."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def files_below(folder: Path, fits: Callable[[str], bool], above: Sequence[str] = ()) -> Iterator[Path]:
    """The files in a folder and in those below it, also behind links, as torchvision walks folders.

    Hidden ones are left out, folders that may not be read, and links to a folder that they lie in.

    Args:
        folder: the folder.
        fits: whether a file of this name is wanted.
        above: the real paths of the folders that lead to it.

    Raises:
        UserError: if a wanted file is a link to a file that is missing.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError:  # as in the lost+found of a disk
        return
    for entry in shown:
        file = folder / entry.name
        if entry.is_dir():
            yield from files_below(file, fits, [*above, real])
        elif fits(entry.name):
            if not file.exists():
                raise UserError(
                    f"{file} is a link to {file.readlink()}, which is missing; get the file, or take the link"
                    " out"
                )
            yield file


def is_packed(file: Path) -> bool:
    """Whether the name of a file says that gzip packed it."""
    return file.suffix.lower() == ".gz"


def read_text(file: Path) -> str:
    """Read a text file.

    Raises:
        UserError: if it is not UTF-8.
    """
    try:
        return require_no_nul(file.read_text(encoding=UTF8), str(file))
    except UnicodeDecodeError as error:
        found = looks_like(file)
        raise UserError(
            f"{file} is not text in UTF-8 (see byte {error.start}), it looks like {found}; convert it to"
            " UTF-8, or give another file"
        ) from None


def text_lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty, without the spaces around them.

    They end at line feeds alone, as a text may hold other separators of lines.
    """
    return [line.strip() for line in read_text(file).split("\n") if line.strip()]


def looks_like(file: Path) -> str:
    """What a file that is not UTF-8 may be, judging by its first bytes."""
    with file.open("rb") as content:
        start = content.read(4096)
    if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "UTF-16"
    return "a binary file" if b"\0" in start else "an 8-bit encoding such as latin-1"


def require_no_nul(text: str, where: str) -> str:
    """Refuse a text with a NUL character, which tokenizers drop or cut at; returns the text.

    Raises:
        UserError: if it holds one.
    """
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{where}, line {line}: there is a NUL byte, so it is damaged or no text; take it out, or give"
            " another file"
        )
    return text


def half_character(value: Any) -> str | None:
    """The first half of a surrogate pair in the texts of a value, escaped; None if there is none.

    It is not a character, and neither UTF-8 nor tokenizers take it. JSON has one where a text was cut within
    an emoji.
    """
    if isinstance(value, str):
        found = SURROGATE.search(value)
        return None if found is None else f"\\u{ord(found.group()):04x}"
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((half for part in parts if (half := half_character(part)) is not None), None)


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: if it is no JSON, or a string in it holds an escaped NUL or half of a surrogate pair.
    """
    if ESCAPED_NUL.search(text):
        raise ValueError("a text in it holds a NUL, \\u0000")
    parsed = json.loads(text)
    if ESCAPED_SURROGATE.search(text):
        for number, entry in enumerate(parsed if isinstance(parsed, list) else [parsed], 1):
            if (half := half_character(entry)) is not None:
                place = f"entry {number}: " if isinstance(parsed, list) else ""
                raise ValueError(f"{place}a text in it holds half of a character, {half}; take it out")
    return parsed


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: if ``parse_json`` refuses it.
    """
    content = read_text(file)
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{file} can't be read as JSON ({error}); download it again") from None
