"""Samples of tar shards in WebDataset's layout: files that share a name up to its first dot."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ecoflap.data.files.chat import IMAGES
from ecoflap.data.files.rows import Row
from ecoflap.data.folder import UTF8, parse_json
from ecoflap.data.sources import is_picture
from ecoflap.errors import UserError

ENDINGS = (".tar",)
TEXTS = {".txt": "caption", ".text": "caption", ".caption": "caption", ".cls": "label"}
"""{ending of a member: the column that its text becomes}."""


class WebDatasetRows:
    """The samples of tar shards; nothing is unpacked to the disk, and only JSON, texts and pictures read."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the names of all members.

        Raises:
            UserError: if a file is not a tar.
        """
        self._shards = [(file, _members(file)) for file in files]
        self._places = [(number, key) for number, (_, members) in enumerate(self._shards) for key in members]

    def __len__(self) -> int:
        return len(self._places)

    def read(self, places: Sequence[int]) -> list[Row]:
        """See ``Rows``."""
        return [self._row(*self._places[place]) for place in places]

    def _row(self, number: int, key: str) -> Row:
        file, members = self._shards[number]
        where = f"{file}, sample {key}"
        with tarfile.open(file, "r:") as shard:
            found = {
                ending: _content(shard, member, where)
                for ending, member in members[key].items()
                if _is_read(ending)
            }
        if not found:
            raise UserError(
                f"{where} has {', '.join(members[key])}; a sample is a picture (.jpg, .png, ...) with .txt or"
                " .json beside it"
            )
        return Row(where, _values(found, where, key), file.parent)


def _members(file: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """{sample: {ending: member}} of a shard, in its order.

    Raises:
        UserError: if it is not a tar.
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                path = PurePosixPath(member.name)
                name, dot, ending = path.name.partition(".")
                links = _is_read(dot + ending.lower()) and (member.islnk() or member.issym())
                if (member.isfile() or links) and name:  # hidden files have no name before the dot
                    samples.setdefault(str(path.parent / name), {})[dot + ending.lower()] = member
            if shard.offset >= file.stat().st_size:
                raise tarfile.ReadError("its end is missing, as if it had been cut between two members")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{file} can't be read as tar ({error}); download it again, or unpack it if it is compressed"
        ) from None
    return samples


def _content(shard: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    """The bytes of a member, or of the one that it is a link to, as tar stores a file with two names.

    Raises:
        UserError: if the shard has no such file.
    """
    try:
        opened = shard.extractfile(member)
    except KeyError:
        opened = None
    if opened is None:
        raise UserError(
            f"{where}: {member.name} is a link to {member.linkname}, which is no file of the shard; pack the"
            " file itself, as tar --dereference does"
        )
    return opened.read()


def _is_read(ending: str) -> bool:
    return ending == ".json" or ending in TEXTS or is_picture(ending)


def _values(found: Mapping[str, bytes], where: str, key: str) -> dict[str, Any]:
    """The columns of a sample: what its JSON holds, its texts, and its pictures.

    Raises:
        UserError: if its JSON is invalid, or is not an object.
    """
    values: dict[str, Any] = {}
    try:
        if ".json" in found:
            values |= parse_json(found[".json"].decode(UTF8))
        for ending, column in TEXTS.items():
            if ending in found:
                text = found[ending].decode(UTF8).strip()
                values[column] = int(text) if column == "label" else text
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: its JSON or text can't be read ({error}); mend the shard") from None
    pictures = [
        {"bytes": found[ending], "path": f"{key}{ending}"}
        for ending in sorted(found, key=_numbered)
        if is_picture(ending)
    ]
    if pictures:
        values = {name: value for name, value in values.items() if name not in IMAGES}
        values["images"] = pictures
    return values


def _numbered(ending: str) -> list[str | int]:
    """What endings are sorted by: the numbers in them by their values, as 2 comes before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", ending)]
