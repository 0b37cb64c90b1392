"""Report a disk that fills up while a checkpoint or pruned blocks are written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ecoflap.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
QUOTED = ("No space left on device", "Disk quota exceeded", "StorageFull", *(f"os error {n}" for n in FULL))


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Report a full disk in one line.

    Args:
        what: what is written in this context, for the message.
        folder: the folder; it need not exist yet.

    Raises:
        UserError: if the disk is full.
    """
    try:
        yield
    except Exception as error:  # those of safetensors and tokenizers, too, which are of no common class
        if isinstance(error, UserError) or not is_full(error):
            raise
        raise UserError(
            f"no space left for {what} in {folder} ({free_disk(folder) / 2**20:,.0f} MiB are free);"
            " make room, or choose another disk with hydra.run.dir=/a/folder"
        ) from error


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist yet."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def is_full(error: BaseException) -> bool:
    """Whether an error is about space: the system's, or one of a library that quotes the system's."""
    return getattr(error, "errno", None) in FULL or any(text in str(error) for text in QUOTED)
