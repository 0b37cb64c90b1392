"""Code snapshots: jobs run a copy of the checkout's code, so that later edits do not change queued jobs.

Parts outside the package lie in a user's folder, beside anything else, so they are not copied: a job whose
parts have changed since it was submitted is refused.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ecoflap.errors import UserError
from ecoflap.storage.file_names import SNAPSHOT
from ecoflap.storage.files import beside, rename, write_json
from ecoflap.storage.installation import PACKAGE
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


def hashes_of_parts(configs: Iterable[str], folders: Iterable[str]) -> dict[str, str]:
    """{file: hash} of configs outside the package, and of the modules beside them that are imported by now.

    Args:
        configs: the folders of ``--config-dir``.
        folders: those beside them, which modules are imported from.
    """
    files = {file.resolve() for folder in configs for file in Path(folder).rglob("*.yaml")}
    roots = [Path(folder).resolve() for folder in folders]
    modules = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    named = [Path(name) for name in modules if name and name.endswith(".py")]
    # torch.ops and torch.classes name files that are nowhere.
    sources = {file.resolve() for file in named if file.is_absolute() and file.is_file()}
    files |= {file for file in sources if any(map(file.is_relative_to, roots))}
    return {str(file): _file_hash(file) for file in sorted(files) if not file.is_relative_to(PACKAGE)}


def require_unchanged(hashes: Mapping[str, str]) -> None:
    """Refuse to run a job with other parts than those that it was submitted with.

    Args:
        hashes: what ``hashes_of_parts`` returned then.

    Raises:
        UserError: if a file has changed or is gone.
    """
    for name, known in hashes.items():
        if not Path(name).is_file() or _file_hash(Path(name)) != known:
            raise UserError(
                f"{name} has changed since this job was submitted; submit it again, or with"
                " hydra.launcher.snapshot=false to run what is there when it starts"
            )


def _file_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


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
