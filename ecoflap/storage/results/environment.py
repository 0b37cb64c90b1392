"""The origin of a result: library versions and the commit, and a config that is safe to publish."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ecoflap.storage.cache.code import package_hash
from ecoflap.storage.file_names import SNAPSHOT
from ecoflap.storage.files import read_json
from ecoflap.storage.installation import checkout

PACKAGES = (
    "ecoflap",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "hydra-core",
    "omegaconf",
    "numpy",
    "wandb",
)
CODE = "code"  # entry of the versions: a hash of the package's source
REDACTED = "<redacted>"

# ``key`` alone is not a secret: configs name tensors with it.
_WORDS = "api[_-]?key|password|secret"
_SECRET = re.compile(rf".*token|(.*[_-])?({_WORDS})", re.IGNORECASE)
_SECRET_GIVEN = re.compile(rf"(\w*(?:token|{_WORDS})\s*[:=]\s*)[^,}}]+", re.IGNORECASE)
_OF_VOCABULARY = re.compile(r"<.+>|\[.+\]")


@cache
def environment() -> dict[str, Any]:
    """The ``versions`` and ``git`` fields of a result: ``Result(**environment(), ...)``.

    They are those of the first call: later edits and upgrades don't change the code that this process runs.
    """
    project = checkout()
    return {
        "versions": {**versions(), CODE: package_hash()},
        "git": git_state(project) if project is not None else None,
    }


def other_versions(recorded: Mapping[str, str | None]) -> list[str]:
    """``package: recorded -> current`` for every version, or the package's source, that has changed."""
    now = {**versions(), CODE: package_hash()}
    return [
        f"{name}: {recorded[name]} -> {version}"
        for name, version in now.items()
        if recorded.get(name, version) != version
    ]


def versions() -> dict[str, str | None]:
    """Versions of Python and of every library that can change a number; None if not installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


def git_state(project: Path) -> dict[str, Any] | None:
    """The commit of the project's checkout, and whether any file differs from it.

    A snapshot has the commit that it was copied at.

    Returns:
        ``{"commit": str, "dirty": bool}``; None outside a checkout, before the first commit, without git, and
            when the package is merely installed somewhere inside another project's checkout.
    """
    if (snapshot := read_json(project / SNAPSHOT)) is not None:
        git: dict[str, Any] | None = snapshot["git"]
        return git
    if not _is_checkout(project):
        return None
    commit = _git(project, "rev-parse", "--verify", "--quiet", "HEAD")
    changes = _git(project, "status", "--porcelain")
    return None if commit is None else {"commit": commit, "dirty": changes != ""}


def git_diff(project: Path) -> str:
    """The uncommitted changes of the project's checkout, in tracked files; empty outside a checkout."""
    return (_git(project, "diff", "HEAD") or "") if _is_checkout(project) else ""


def _is_checkout(project: Path) -> bool:
    top = _git(project, "rev-parse", "--show-toplevel")
    return top is not None and Path(top).resolve() == project.resolve()


def redact(config: Any) -> Any:
    """A copy of a config without the values of ``api_key``, ``*token``, ``password`` and ``secret``.

    Empty values and flags stay.
    """
    if isinstance(config, dict):
        return {
            name: REDACTED if _is_secret(name, value) else redact(value) for name, value in config.items()
        }
    return [redact(value) for value in config] if isinstance(config, list) else config


def redact_argument(argument: str) -> str:
    """An argument of a command line without the values that ``redact`` leaves out of a config."""
    return _SECRET_GIVEN.sub(rf"\1{REDACTED}", argument)


def _is_secret(name: object, value: Any) -> bool:
    """Whether a config entry holds a secret.

    An integer that is called a token is an id in a vocabulary, and ``<s>`` or ``[MASK]`` an entry of one.
    """
    if value in (None, "") or isinstance(value, bool):
        return False
    of_vocabulary = isinstance(value, int) or (isinstance(value, str) and _OF_VOCABULARY.fullmatch(value))
    if of_vocabulary and str(name).lower().endswith("token"):
        return False
    return _SECRET.fullmatch(str(name)) is not None


def _version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(project: Path, *arguments: str) -> str | None:
    """Output of a git command, or None if it fails.

    It takes no lock, so that concurrent jobs do not disturb each other or the user.
    """
    try:
        command = ["git", "--no-optional-locks", "-C", str(project), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
