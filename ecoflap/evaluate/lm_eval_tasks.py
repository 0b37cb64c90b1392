"""Tasks of EleutherAI's lm-evaluation-harness: find them by name, read and hash them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError, did_you_mean
from ecoflap.evaluate.harness_tasks import settings_of, shown, unreadable
from ecoflap.evaluate.inputs import spread
from ecoflap.storage.installation import install_extra


def task_manager(include_path: str | None) -> Any:
    """The harness's index of tasks.

    Args:
        include_path: folder with further tasks; None for none.

    Raises:
        UserError: if the harness is not installed.
    """
    try:
        from lm_eval.models import huggingface  # noqa: F401
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"task=lm_eval needs lm-evaluation-harness ({error}): {install_extra('lm-eval')}"
        ) from error
    return TaskManager(include_path=None if include_path is None else str(Path(include_path).expanduser()))


def read_task(manager: Any, name: str) -> dict[str, Any]:
    """Read a task, or the members of a group, with their data.

    Returns:
        The tasks by name.

    Raises:
        UserError: if there is no such task, its data are missing, or it asks for what isn't measured.
    """
    if name not in manager.all_tasks:
        raise UserError(
            f"task.harness_tasks: the harness has no {name}; {did_you_mean(name, manager.all_tasks)}"
        )
    try:
        members: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:
        raise unreadable(name, error) from error
    for member, task in members.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"task.harness_tasks: {member} runs the code that the model writes, which the harness does"
                " only if told that it is safe; choose another task, or evaluate the saved model with lm_eval"
            )
        if getattr(task, "MULTIMODAL", False) and task.OUTPUT_TYPE != "generate_until":
            raise UserError(
                f"task.harness_tasks: {member} has pictures and is of the kind {task.OUTPUT_TYPE}, and with"
                " pictures the harness measures generate_until alone; choose another task"
            )
    return members


def fingerprint(tasks: Mapping[str, Mapping[str, Any]], num_fewshot: int | None) -> str:
    """A hash of all inputs of the tasks, including the examples that are shown before questions."""
    digest = hashlib.blake2b(digest_size=16)
    for name, task in chain.from_iterable(members.items() for members in tasks.values()):
        settings = settings_of(task.dump_config())
        digest.update(f"{name} {task.VERSION} {task.OUTPUT_TYPE} {settings}\n".encode())
        shots = task.get_config("num_fewshot") if num_fewshot is None else num_fewshot
        for document in chain(task.eval_docs, task.fewshot_docs() if shots else ()):
            choices = task.doc_to_choice(document) if task.OUTPUT_TYPE == "multiple_choice" else None
            digest.update(
                f"{task.doc_to_text(document)!r} {task.doc_to_target(document)!r} {choices!r}\n".encode()
            )
            for image in pictures_of(task, document):
                digest.update(shown(image))
    return digest.hexdigest()


def examples(members: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """The harness's options for ``limit`` examples of each task, evenly spaced, or all of a smaller task.

    Before 0.4.9 it takes the first ones, and can't be told which.
    """
    from lm_eval import simple_evaluate

    if limit is None or "samples" not in signature(simple_evaluate).parameters:
        return {"limit": limit}
    places = {name: range(len(member.eval_docs)) for name, member in members.items()}
    return {"samples": {name: spread(of_it, min(limit, len(of_it)), name) for name, of_it in places.items()}}


def pictures_of(task: Any, document: Any) -> list[Any]:
    """The images of one of a task's documents."""
    found = task.doc_to_image(document) if getattr(task, "MULTIMODAL", False) else None
    if found is None:
        return []
    return found if isinstance(found, list) else [found]
