"""Upload a saved model to the hub, after it was checked against its record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError
from ecoflap.storage.file_names import ADAPTER, CARD, RECIPE, RESULT
from ecoflap.storage.results.record import Result
from ecoflap.storage.results.verification import verify
from ecoflap.storage.saved_model import (
    FOREIGN_WEIGHTS,
    PROCESSOR_FILES,
    WEIGHTS,
    processor_files,
)
from ecoflap.storage.sharing.describe import describe

LEFT_OUT = (".git/*", ".cache/*", "*.partial/*", ".tmp-*", *FOREIGN_WEIGHTS, *ADAPTER)
"""Patterns, as the hub's library reads them, of files that are not of the saved model."""
REPLACED = (*WEIGHTS, *FOREIGN_WEIGHTS, *ADAPTER)
"""Patterns of an earlier model's weights in the repository, which may be loaded instead of the new ones."""
DENIED = (401, 403, 404)
"""Status codes of a hub on which the user may not write to a repository; 404 where it hides one."""

FIGURES = ("model", "metrics", "standard_errors", "sparsity", "weights", "model_files")


@dataclass(frozen=True)
class Prepared:
    """A folder that is ready to be uploaded.

    Attributes:
        folder: the folder.
        title: the model's name and method, for the commit.
        files: {path below the folder: bytes}.
    """

    folder: Path
    title: str
    files: dict[str, int]


def check_name(repo_id: str) -> None:
    """Refuse what can't be the name of a repository.

    Raises:
        UserError: if it can't.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{repo_id!r} can't be a repository on the hub ({str(error).removesuffix('.')}); give OWNER/NAME,"
            " such as me/opt-125m-half"
        ) from None


def prepare(place: Path) -> Prepared:
    """Check a saved model, and write what it lacks of card, recipe and record.

    Args:
        place: the folder of a run that saved its model, or of the saved model itself.

    Raises:
        UserError: if there is no record or saved model, or the two disagree.
    """
    try:
        result = Result.read(place / RESULT)
        differences = verify(place)
        folder = place / str(result.checkpoint)
        copied = Result.read(folder / RESULT) if (folder / RESULT).is_file() else result
    except (OSError, ValueError) as error:
        raise UserError(f"{place} can't be shared: {error}") from error
    if differences:
        raise UserError(
            f"{place} can't be shared: the saved model differs from its record ({differences[0]}"
            f"{f', and {len(differences) - 1} more' if len(differences) > 1 else ''}); ecoflap verify {place}"
            " lists it all; restore what was saved, or run it again"
        )
    if _figures(copied) != _figures(result):
        raise UserError(
            f"{place} can't be shared: {folder / RESULT} has other figures than {place / RESULT}; remove it,"
            " and it is written anew"
        )
    if any(not (folder / name).is_file() for name in (CARD, RECIPE, RESULT)):
        describe(folder, result)
    sizes = {name: (folder / name).stat().st_size for name in _uploaded(folder)}
    return Prepared(folder, f"{result.model['name']} at sparsity {result.config.get('sparsity')}", sizes)


def _figures(result: Result) -> dict[str, Any]:
    """What the record of a run and its copy beside the model share; from the latter, paths may be taken."""
    return {name: value for name, value in result.to_json().items() if name in FIGURES}


def _uploaded(folder: Path) -> list[str]:
    """The files that ``upload_folder`` takes, sorted."""
    from huggingface_hub.utils import filter_repo_objects

    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = (path.relative_to(folder).as_posix() for path in files)
    return list(filter_repo_objects(names, ignore_patterns=list(LEFT_OUT)))


def push(prepared: Prepared, repo_id: str, private: bool, hub: Any) -> str:
    """Create the repository if needed, and upload the folder; returns the repository's address.

    Weights and adapters of an earlier model that are not uploaded anew are removed, as ``ecoflap.save`` does
    in a folder, and if this one has a tokenizer or processor, those of the earlier one. The repository's
    history keeps them.

    Args:
        prepared: the folder.
        repo_id: NAME, or OWNER/NAME.
        private: whether a new repository is private; one that exists stays as it is.
        hub: ``huggingface_hub.HfApi()``.

    Raises:
        UserError: if the hub refuses, or can't be reached.
    """
    processor = PROCESSOR_FILES if processor_files(prepared.folder) else ()
    try:
        created = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=getattr(created, "repo_id", repo_id),  # old releases return the address alone
            folder_path=prepared.folder,
            commit_message=f"Upload {prepared.title}",
            ignore_patterns=list(LEFT_OUT),
            delete_patterns=[*REPLACED, *processor],
        )
    except Exception as error:  # the hub and its network library raise errors of every kind
        raise _not_uploaded(repo_id, error) from error
    return str(created)


def _not_uploaded(repo_id: str, error: Exception) -> UserError:
    """The error of an upload that failed, with what the hub said, and the library before it."""
    answer = error if hasattr(error, "response") else error.__cause__
    answered = [] if answer is None else _lines(answer)
    said = ": ".join(dict.fromkeys([_lines(error)[0], *answered[:1], *answered[-1:]]))
    status = getattr(getattr(answer, "response", None), "status_code", None)
    advice = "correct that, or try again"
    if status in DENIED:
        advice = "log in with hf auth login, and give a repository that you may write to"
    return UserError(f"{repo_id}: not uploaded ({said}); {advice}")


def _lines(error: BaseException) -> list[str]:
    """What an error says, without links to explanations of status codes; its type if it says nothing."""
    lines = [line.rstrip(".:") for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("For more information")]
    return told or [type(error).__name__]
