"""Data given as the path of a file, which only a data set with a path reads."""

from __future__ import annotations

from os.path import exists, isdir

from ecoflap.data.files import parquet, webdataset
from ecoflap.data.folder import JSON_ENDINGS
from ecoflap.errors import UserError

READERS = {
    "chat": JSON_ENDINGS,
    "parquet": parquet.ENDINGS,
    "webdataset": webdataset.ENDINGS,
    "text": (".txt", ".txt.gz"),
}
"""{data set: endings of the files that it reads}."""


def refuse_path(data: str) -> None:
    """Refuse the path of a file or a folder, with the data set that reads it.

    Raises:
        UserError: if there is such a file or folder, or the text ends as the name of one.
    """
    name = data.lower()
    reader = next((reader for reader, endings in READERS.items() if name.endswith(endings)), None)
    if reader is None and exists(data):
        reader = "parquet" if isdir(data) else "text"
    if reader is not None:
        raise UserError(
            f"data={data!r} is a path, and the name of no data set; to read the file, give"
            f" data=ecoflap.calibrate(model, {reader!r}, path={data!r}), with the model that ecoflap.load"
            " returns"
        )
