"""Imports run one way, floor by floor, from ``errors`` at the bottom to the command line at the top."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ecoflap"
# From the bottom to the top; a file may import what is on its own floor or on one below. Of several patterns
# that a file matches, the longest counts.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors.py",),
    ("ops/*", "storage/*"),
    ("console/*",),
    ("data/*",),  # examples, sources, batches, calibration sets and readers: no models
    ("distributed/*",),
    ("models/*",),
    ("models/families/*",),
    ("storage/checkpoint.py", "storage/saved_places.py", "blocks/*", "evaluate/*"),
    (  # what a model calibrates with and is measured on, beside the readers
        "data/protocol.py",
        "data/*/calibration.py",
        "data/*/task.py",
        "data/captions/ranking.py",
        "data/captions/retrieval.py",
        "data/easy_vqa/picture_tasks.py",
        "data/easy_vqa/pictures.py",
        "data/files/fitting.py",
        "data/files/texts.py",
        "data/text/checks.py",
        "data/text/generated.py",
        "data/text/perplexity.py",
        "data/text/prefix.py",
        "data/vqa/questions.py",
    ),
    ("score/*", "allocate/allocation.py"),
    ("finetune/*",),
    ("prune/*",),
    ("allocate/*",),
    ("sweeps/report/*", "sweeps/submitted.py"),  # views of result records, and of the list of jobs
    ("run/*",),
    ("sweeps/*",),
    ("api/*",),
    ("cli/*",),
    ("__init__.py", "__main__.py"),
)
FLOOR = {pattern: floor for floor, patterns in enumerate(FLOORS) for pattern in patterns}
FILES = {str(file.relative_to(PACKAGE)): file for file in sorted(PACKAGE.rglob("*.py"))}


def floor_of(name: str) -> int:
    """The floor of a file, by its name below the package."""
    return FLOOR[max((pattern for pattern in FLOOR if fnmatch(name, pattern)), key=len)]


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING``, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from runtime_nodes(node)


def imported_files(source: str) -> set[str]:
    """The files of ecoflap that a source imports, inside functions too."""
    found: set[str] = set()
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            module = node.module or ""
            names = [file_of(f"{module}.{alias.name}") or file_of(module) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [file_of(alias.name) for alias in node.names]
        else:
            continue
        found |= {name for name in names if name is not None}
    return found


def file_of(module: str) -> str | None:
    """The file of a module of ecoflap; null for anything else."""
    if module.partition(".")[0] != "ecoflap":
        return None
    path = "/".join(module.split(".")[1:])
    candidates = (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py")
    return next((name for name in candidates if name in FILES), None)


def test_every_way_to_import_is_seen() -> None:
    source = """
import torch, ecoflap.ops.noise as noise
from ecoflap import errors
if TYPE_CHECKING:
    from ecoflap.run.pipeline import run
def f():
    from ecoflap.score.scores import Scores
    from ecoflap.ops import gaussian
"""
    assert imported_files(source) == {"ops/noise.py", "ops/__init__.py", "errors.py", "score/scores.py"}


def test_every_pattern_places_a_file() -> None:
    placed = {max((pattern for pattern in FLOOR if fnmatch(name, pattern)), key=len) for name in FILES}
    assert placed == set(FLOOR)


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name: str) -> None:
    above = {other for other in imported_files(FILES[name].read_text()) if floor_of(other) > floor_of(name)}
    assert not above, f"ecoflap/{name} must not import {sorted(above)}, which are on a floor above it"


def test_no_modules_import_each_other() -> None:
    graph = {name: imported_files(file.read_text()) - {name} for name, file in FILES.items()}
    TopologicalSorter(graph).prepare()  # raises where there is a circle


def test_the_package_has_few_rooms() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if not path.name.startswith(("_", "."))} - {"py.typed"}
    assert len(rooms) <= 18, sorted(rooms)


def test_main_imports_only_what_it_needs_to_start() -> None:
    assert imported_files((ROOT / "main.py").read_text()) == {"cli/command.py"}
    assert imported_files(FILES["__main__.py"].read_text()) == {"cli/command.py"}
    assert imported_files(FILES["cli/command.py"].read_text()) == {
        "console/arguments.py",
        "console/startup.py",
        "errors.py",
    }


def test_options_and_explanations_load_no_model_library() -> None:
    modules = [f"ecoflap.{name.removesuffix('.py').replace('/', '.')}" for name in FILES]
    options = [module for module in modules if module.endswith(".options")]
    assert len(options) > 20
    code = f"""
import importlib, sys
for name in {options}:
    importlib.import_module(name)
from ecoflap.cli.explain import main
main(["", "model=blip2_mini", "finetune", "task.limit"])
print({{"torch", "transformers", "numpy", "PIL", "datasets"}} & set(sys.modules))
"""
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert finished.stdout.splitlines()[-1] == "set()"
