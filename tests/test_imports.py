"""Imports run one way: ops <- models <- data <- calibrate <- score, allocate, prune, evaluate <- pipeline <- main."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = {"errors", "file_names", "console", "store", "telemetry", "masks", "shards"}
STEPS = {"score", "allocate", "prune", "evaluate", "finetune"}
BELOW_STEPS = {"ops", "models", "data", "calibrate"}
# What each part may import beside itself and SHARED.
ALLOWED: dict[str, set[str]] = {
    "ops": set(),
    "models": {"ops"},
    "data": {"models"},
    "calibrate": {"ops", "models", "data"},
    "score": BELOW_STEPS,
    "allocate": BELOW_STEPS | {"score"},  # an allocation is made of scores
    "prune": BELOW_STEPS | {"allocate", "score", "finetune"},  # and pruning of an allocation; global pruning of gradients
    "evaluate": BELOW_STEPS,
    "finetune": BELOW_STEPS,  # of any pruned model, whoever pruned it
    "results": set(),
    "tracking": {"results"},
    "checkpoint": {"models"},
    "config": set(),
    "command_line": {"config"},
    "refusals": set(),
    "cluster": {"plan", "refusals", "results", "run_folder"},  # all jobs of a sweep are checked before the first
    "report": BELOW_STEPS | STEPS | {"results", "config"},  # config: a record says how its model is loaded
    "plan": BELOW_STEPS | STEPS | {"config", "results"},
    "status": {"results"},
    "cache": set(),  # a command line over the store
    "run_folder": {"checkpoint", "results"},
    "model_reuse": {"models"},
    "progress": BELOW_STEPS | STEPS,
    "steps": BELOW_STEPS | STEPS | {"plan", "progress", "report", "tracking", "config", "model_reuse"},
    "outcome": BELOW_STEPS | STEPS | {"plan", "progress", "report", "results", "tracking", "checkpoint"},
    "pipeline": BELOW_STEPS | STEPS | {"plan", "progress", "steps", "outcome", "report", "results", "tracking", "config", "run_folder"},
    "mini": BELOW_STEPS | STEPS,  # a script that trains a model; nothing imports it
    **{name: {"masks": {"store"}, "store": {"errors"}, "telemetry": {"errors"}}.get(name, set()) for name in SHARED},
}
FILES = sorted((ROOT / "ecoflap").rglob("*.py"))


def part_of(file: Path) -> str:
    """The folder of the package that a file is in, or its own name where it is in none."""
    return file.relative_to(ROOT / "ecoflap").with_suffix("").parts[0]


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING``, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from runtime_nodes(node)


def imported_parts(source: str) -> set[str]:
    """The parts of ecoflap that a source imports, inside functions too."""
    found: set[str] = set()
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "ecoflap" else [module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("ecoflap.")}
    return found


def test_every_way_to_import_is_seen() -> None:
    source = """
import torch, ecoflap.ops.noise as noise
from ecoflap import console
if TYPE_CHECKING:
    from ecoflap.run.pipeline import run
def f():
    from ecoflap.score.scores import Scores
"""
    assert imported_parts(source) == {"ops", "console", "score"}


def test_every_part_has_a_rule() -> None:
    assert {part_of(file) for file in FILES} - {"__init__"} == set(ALLOWED)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file: Path) -> None:
    part = part_of(file)
    shared = set() if part in SHARED | {"ops"} else SHARED
    wrong = imported_parts(file.read_text()) - ALLOWED.get(part, set()) - shared - {part}
    assert not wrong, f"{file.relative_to(ROOT)} is part of {part!r}, which must not import {sorted(wrong)}"


def test_no_two_parts_may_import_each_other() -> None:
    assert not {(one, other) for one, below in ALLOWED.items() for other in below if one in ALLOWED[other]}


def test_main_imports_only_what_it_needs_to_start() -> None:
    assert imported_parts((ROOT / "main.py").read_text()) <= {"command_line", "config", "console", "errors", "pipeline", "refusals"}
