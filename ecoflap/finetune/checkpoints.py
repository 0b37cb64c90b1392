"""The checkpoint that a training resumes from."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from ecoflap.distributed.collectives import from_first
from ecoflap.distributed.processes import is_first
from ecoflap.storage.files import write_json

log = logging.getLogger(__name__)

IDENTITY = "identity.json"


def last_checkpoint(folder: Path, identity: dict[str, Any]) -> str | None:
    """The newest checkpoint in a folder; the first process removes incomplete and foreign ones."""
    first = is_first()
    file = folder / IDENTITY
    plain = json.loads(json.dumps(identity))
    if first and (not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != plain):
        if any(folder.glob("checkpoint-*")):
            log.warning("%s holds checkpoints of another training; they are removed", folder)
        file.unlink(missing_ok=True)  # first: what a killed removal leaves must not be taken for the rest
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(file, plain)
    if first:
        for checkpoint in folder.glob("checkpoint-*"):
            if not _is_whole(checkpoint):
                log.warning("%s was not written to the end; it is removed", checkpoint)
                shutil.rmtree(checkpoint)
    last = get_last_checkpoint(str(folder)) if first else None
    if last is not None:
        _point_to_best(Path(last))
    return from_first(last)  # another node may still see what was removed


def has_ended(checkpoint: str) -> bool:
    """Whether a training has ended with a checkpoint: the Trainer takes a step before it looks at that."""
    callbacks = _state_of(Path(checkpoint)).get("stateful_callbacks", {})
    return bool(callbacks.get("TrainerControl", {}).get("args", {}).get("should_training_stop"))


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """The Trainer's state in a checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return state


def _point_to_best(checkpoint: Path) -> None:
    """Let a checkpoint name the best one beside itself: the Trainer has written where the folder was then."""
    state = _state_of(checkpoint)
    best = state["best_model_checkpoint"]
    if best is not None and Path(best).parent != checkpoint.parent:
        write_json(
            checkpoint / TRAINER_STATE_NAME,
            {**state, "best_model_checkpoint": str(checkpoint.with_name(Path(best).name))},
        )


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete: the Trainer writes its own file last."""
    try:
        _state_of(checkpoint)
    except (OSError, ValueError):
        return False
    return True
