"""Contexts that change what loaders read: processors of models without weights, shapes without weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ecoflap.errors import UserError
from ecoflap.models.core.hooks import setting

_with_processors: ContextVar[bool] = ContextVar("with_processors", default=False)


def with_processors() -> AbstractContextManager[object]:
    """Read processors of models on the meta device, too, in this context.

    The protocols of an interface are known only with its processor.
    """
    return setting(_with_processors, True)


def wants_processor(device: torch.device) -> bool:
    """Whether a model on this device gets a processor; one that is only inspected does not."""
    return device.type != "meta" or _with_processors.get()


@dataclass
class Streaming:
    """The report of a loader that left the weights on the disk.

    Attributes:
        folder: the checkpoint folder; None if the loader reads no checkpoint folder.
    """

    folder: Path | None = None


_streaming: ContextVar[Streaming | None] = ContextVar("streaming", default=None)


def streaming_from_disk() -> AbstractContextManager[Streaming]:
    """Make the loaders of checkpoint folders read names, shapes and buffers only, in this context."""
    return setting(_streaming, Streaming())


def streaming() -> Streaming | None:
    """The report of the innermost ``streaming_from_disk``; None outside of one."""
    return _streaming.get()


def require_loaded(loader: Any, *options: str) -> None:
    """Refuse options of a loader that change weights after loading, if the weights stay on the disk.

    Args:
        loader: a loader of the config group ``model``.
        options: names of such options.

    Raises:
        UserError: if the weights stay on the disk, and one of the options is set.
    """
    values = {option: getattr(loader, option) for option in options}
    given = [f"model.{option}={value}" for option, value in values.items() if value is not None]
    if given and streaming() is not None:
        raise UserError(
            f"{given[0]} changes weights as they are loaded, and runtime.offload=disk leaves them on the"
            " disk; use runtime.offload=cpu"
        )
