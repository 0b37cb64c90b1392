"""Tasks of EvolvingLMMs-Lab's lmms-eval: find them by name, read and hash them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError, did_you_mean
from ecoflap.evaluate.harness_tasks import settings_of, shown, unreadable
from ecoflap.storage.installation import install_extra

PACKAGE = "lmms-eval>=0.7.3,<0.8"
READ = ("generate_until", "multiple_choice")
"""The kinds of tasks that are asked."""


@contextmanager
def as_lmms_eval() -> Iterator[None]:
    """Let Pillow fill pictures that are cut off, in a context, and undo what imports of lmms-eval set.

    On import, it lets Pillow do so, and hides warnings, for the whole process. Its own figures have such
    pictures; calibration refuses them.
    """
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with warnings.catch_warnings():
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


@as_lmms_eval()
def import_harness() -> None:
    """Import lmms-eval, without its log.

    Raises:
        ImportError: if it is not installed, or something that it needs isn't.
    """
    import lmms_eval.evaluator
    import lmms_eval.tasks  # noqa: F401
    from loguru import logger

    logger.disable("lmms_eval")


def task_manager(include_path: str | None) -> Any:
    """The index of tasks.

    Args:
        include_path: folder with further tasks; None for none.

    Raises:
        UserError: if lmms-eval is not installed, or a file in the folder is not a task.
    """
    try:
        import_harness()
        from lmms_eval.tasks import TaskManager
    except ImportError as error:
        # One of its many requirements holds another release of what Hydra reads its options with.
        raise UserError(
            f"task=lmms_eval needs lmms-eval ({error}): {install_extra('lmms-eval')} and pip install"
            f" --no-deps '{PACKAGE}'"
        ) from error
    folder = None if include_path is None else str(Path(include_path).expanduser())
    try:
        return TaskManager(include_path=folder)
    except Exception as error:
        raise UserError(
            f"task.include_path={include_path}: a YAML file there is not a task ({type(error).__name__}:"
            f" {error}); give a folder that holds tasks alone"
        ) from error


@as_lmms_eval()
def read_tasks(manager: Any, name: str) -> dict[Any, Any]:
    """Read a task, or the members of a group, with their data.

    Returns:
        The tasks by name, and those of a group in dicts, as ``lmms_eval.evaluator.evaluate`` takes them.

    Raises:
        UserError: if there is no such task, its data are missing, or it asks for what isn't measured.
    """
    if name not in manager.all_tasks:
        raise UserError(
            f"task.harness_tasks: lmms-eval has no {name}; {did_you_mean(name, manager.all_tasks)}"
        )
    from lmms_eval.tasks import get_task_dict

    try:
        found: dict[Any, Any] = get_task_dict([name], manager, "simple")
    except Exception as error:
        raise unreadable(name, error) from error
    for member, task in members(found).items():
        if task.OUTPUT_TYPE not in READ:
            raise UserError(
                f"task.harness_tasks: {member} is of the kind {task.OUTPUT_TYPE}, and {' and '.join(READ)}"
                " are measured; choose another task"
            )
        if "exact_match" in metrics_of_choices(task):
            raise UserError(
                f"task.harness_tasks: {member} asks for the exact_match of choices, whether one is the greedy"
                " answer, and choices go by their losses alone; choose acc or acc_norm"
            )
    return found


def metrics_of_choices(task: Any) -> list[Any]:
    """The metrics that lmms-eval itself computes of a task's choices, not a function of the task."""
    if task.OUTPUT_TYPE != "multiple_choice" or callable(task.config.process_results):
        return []
    return [one["metric"] for one in task.config.metric_list or ()]


def members(tasks: dict[Any, Any]) -> dict[str, Any]:
    """The tasks among tasks and groups, by name."""
    from lmms_eval.evaluator_utils import get_task_list

    return {one.task_name: one.task for one in get_task_list(tasks)}


@as_lmms_eval()
def fingerprint(tasks: Mapping[str, dict[Any, Any]], limit: int | None) -> str:
    """A hash of all questions, their pictures and answers, and of how they are asked and scored."""
    digest = hashlib.blake2b(digest_size=16)
    for of_name in tasks.values():
        for name, task in members(of_name).items():
            digest.update(f"{name} {task.VERSION} {settings_of(task.dump_config())}\n".encode())
            for document in islice(documents(task), limit):
                digest.update(f"{task.doc_to_text(document)!r} {task.doc_to_target(document)!r}\n".encode())
                for picture in task.doc_to_visual(document) or ():
                    digest.update(shown(picture))
    return digest.hexdigest()


def documents(task: Any) -> Any:
    """The documents that a task asks about."""
    return task.test_docs() if task.has_test_docs() else task.validation_docs()
