"""Data given as the path of a file, which only a data set with a path reads."""

from __future__ import annotations

from collections.abc import Iterable
from os.path import exists

from ecoflap.data.files import parquet, webdataset
from ecoflap.data.folder import JSON_ENDINGS
from ecoflap.errors import UserError, did_you_mean

READERS = {
    "chat": JSON_ENDINGS,
    "parquet": parquet.ENDINGS,
    "webdataset": webdataset.ENDINGS,
    "token_file": (".safetensors",),
    "text": (".txt", ".txt.gz"),
}
"""{data set: endings of the files that it reads}."""


def refuse_path(data: str, known: Iterable[str]) -> None:
    """Refuse the path of a file or a folder, with the data set that reads it.

    Args:
        data: what was given as data.
        known: the names of the data sets.

    Raises:
        UserError: if there is such a file or folder, or the text ends as the name of one.
    """
    name = data.lower()
    reader = next((reader for reader, endings in READERS.items() if name.endswith(endings)), None)
    if not exists(data) and (reader is None or " " in data):
        return
    shown, choices = repr(reader), ""
    if reader is None:
        shown, choices = "NAME", f", where NAME is the data set that reads it; {did_you_mean(data, known)}"
    raise UserError(
        f"data={data!r} is a path, and the name of no data set; to read it, give"
        f" data=ecoflap.calibrate(model, {shown}, path={data!r}), with the model that ecoflap.load"
        f" returns{choices}"
    )
