"""What tasks of lm-evaluation-harness and lmms-eval share: options, hashes of what they ask, processes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ecoflap.data.image_in_memory import image_digest
from ecoflap.errors import UserError, require_positive
from ecoflap.evaluate.options import LmEvalOptions, LmmsEvalOptions
from ecoflap.storage.cache.code import folder_hash

IRRELEVANT = ("include_path", "batch_size", "name")
"""Options that change no metric."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of a function in memory, which changes from run to run."""


def check_options(task: LmEvalOptions | LmmsEvalOptions, example: str) -> None:
    """Refuse options that are impossible for either harness.

    Args:
        task: the options.
        example: which tasks may be named, for the message.

    Raises:
        UserError: if a number is too small, no task is named, or there is no such folder.
    """
    require_positive("task", task, "limit", "batch_size")
    if not task.harness_tasks:
        raise UserError(f"task.harness_tasks is empty; name tasks of {example}")
    if task.include_path is not None and not Path(task.include_path).expanduser().is_dir():
        raise UserError(f"task.include_path={task.include_path}: there is no such folder")


def relevant(task: LmEvalOptions | LmmsEvalOptions) -> dict[str, Any]:
    """The options that metrics depend on."""
    return {name: value for name, value in asdict(task).items() if name not in IRRELEVANT}


def unreadable(name: str, error: Exception) -> UserError:
    """The error of a task that its harness fails to read."""
    return UserError(
        f"task.harness_tasks: {name} could not be read ({type(error).__name__}: {error}); unset"
        " HF_HUB_OFFLINE while online, or choose tasks whose data are here"
    )


def alone() -> AbstractContextManager[None]:
    """Let a harness find a single process in the environment, in a context.

    Each process of a run evaluates whole tasks. From what a launcher sets, a harness would divide the
    examples of a task among the processes once more, or return results in the first one of a node alone.
    """
    from accelerate.utils import patch_environment

    context: AbstractContextManager[None] = patch_environment(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    return context


def code_below(include_path: str | None) -> str:
    """A hash of the Python files in a folder of tasks, which their settings call; empty without a folder."""
    return "" if include_path is None else folder_hash(Path(include_path).expanduser())


def settings_of(config: Mapping[str, Any]) -> str:
    """How a task asks and scores, but for the number of examples, which is an option of the run."""
    asked = {name: value for name, value in config.items() if name != "num_fewshot"}
    return ADDRESS.sub("", json.dumps(asked, sort_keys=True, default=str))


def shown(picture: Any) -> bytes:
    """What a document shows, as bytes: of a Pillow image a hash that tells palettes apart."""
    from PIL import Image

    if isinstance(picture, Image.Image):
        return image_digest(picture).encode()
    content: bytes = picture.tobytes() if hasattr(picture, "tobytes") else repr(picture).encode()
    return content
