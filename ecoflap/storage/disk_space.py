"""A disk that is full while a checkpoint or pruned blocks are written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ecoflap.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Say in one line that a disk is full.

    Args:
        what: is written, for the message.
        folder: where; it need not be there yet.

    Raises:
        UserError: it is.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        raise UserError(
            f"no space left for {what} in {folder} ({shutil.disk_usage(there).free / 2**20:,.0f} MiB are"
            " free); make room, or choose another disk with hydra.run.dir=/a/folder"
        ) from error


def _is_full(error: Exception) -> bool:
    """Whether an error is one of space: the system's, or safetensors', which gives the system's words
    alone.
    """
    return getattr(error, "errno", None) in FULL or any(f"os error {number}" in str(error) for number in FULL)
