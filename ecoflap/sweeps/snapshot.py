"""Code snapshots: jobs run a copy of the checkout's code, so that later edits do not change queued jobs."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from ecoflap.errors import UserError
from ecoflap.storage.file_names import SNAPSHOT
from ecoflap.storage.files import beside, rename, write_json
from ecoflap.storage.results.environment import git_diff, git_state

PARTS = ("main.py", "conf", "sweeps", "ecoflap", "hydra_plugins")
WEIGHTS = "*.safetensors"  # large, and read from the original folder


def take_snapshot(folder: Path, project: Path) -> Path:
    """Copy the code into a subfolder of ``folder`` that is named by its hash, unless there is one.

    Args:
        folder: the folder of the sweep.
        project: the checkout.

    Returns:
        The folder of the copy.

    Raises:
        UserError: if a part of the code is missing.
    """
    target = folder / f"code-{_hash(project)[:12]}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    copy = beside(target)
    try:
        copy.mkdir()
        for part in PARTS:
            _copy(project / part, copy / part)
        write_json(copy / SNAPSHOT, {"origin": str(project), "git": git_state(project)})
        if diff := git_diff(project):
            (copy / "code.diff").write_text(diff, encoding="utf-8")
        rename(copy, target)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return target


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", WEIGHTS))
    else:
        shutil.copy2(source, target)


def _hash(project: Path) -> str:
    """A hash of all files of the code.

    Raises:
        UserError: if a part of the code is missing.
    """
    if missing := [part for part in PARTS if not (project / part).exists()]:
        raise UserError(
            f"the code that jobs run can't be copied: {project} has no {', '.join(missing)}; submit from a"
            " whole checkout"
        )
    digest = hashlib.sha256()
    for part in PARTS:
        files = sorted((project / part).rglob("*")) if (project / part).is_dir() else [project / part]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts and not file.match(WEIGHTS):
                digest.update(f"{file.relative_to(project)}\n".encode() + file.read_bytes())
    return digest.hexdigest()
