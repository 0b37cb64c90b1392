"""A hash of the code that computed a stored value: the source of some modules and of all that they import.

A module of Python or of an installed library counts by the library's version, which keys hold anyway; every
other module counts by its source, whether it belongs to this package or to a user's own part outside of it.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.util import find_spec, resolve_name
from pathlib import Path

from ecoflap.errors import UserError

PACKAGE = __name__.partition(".")[0]
PYTHON = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
INSTALLED = {"site-packages", "dist-packages"}  # of this environment, or of one that lends it its libraries

LOADERS = ((SourceFileLoader, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES))


def source_hash(*modules: str) -> str:
    """A hash of the source of modules and of what they import, directly or not, inside functions too.

    A source is read once per process, when it is first asked for: an edit meanwhile changes neither the code
    that runs nor its hash.

    Raises:
        UserError: if a module or something of the same package that it imports has no source file.
    """
    roots = {PACKAGE, *(module.partition(".")[0] for module in modules)}
    found: dict[str, str] = {}
    waiting = [name for module in modules for name in _with_parents(module)]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        content, imported = _read(module)
        found[module] = content
        waiting += [
            name for name in imported if name.partition(".")[0] in roots or _is_own(name.partition(".")[0])
        ]
    digest = hashlib.sha256()
    for module in sorted(found):
        digest.update(f"{module} {found[module]}\n".encode())
    return digest.hexdigest()[:32]


@cache
def package_hash() -> str:
    """A hash of every source of this package, wherever it lies."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@cache
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    """A hash of a module's source, and the modules that it imports with the packages that these lie in."""
    spec = _spec(module)
    if spec is None or (spec.has_location and not Path(spec.origin or "").is_file()):
        raise UserError(
            f"the source of {module} is missing, so what it computes can't be cached; put its file back"
        )
    if not spec.has_location:  # a folder without an __init__.py
        return "", ()
    file = Path(spec.origin or "")
    content = file.read_bytes()
    if file.suffix != ".py":  # a compiled module
        return hashlib.sha256(content).hexdigest(), ()
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    imported = dict.fromkeys(
        name for found in _imports(ast.parse(content), package) for name in _with_parents(found)
    )
    return hashlib.sha256(content).hexdigest(), tuple(imported)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that a source imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                resolve_name("." * node.level + (node.module or ""), package)
                if node.level
                else node.module or ""
            )
            yield base
            if _is_own(base.partition(".")[0]):
                # What is imported from a package may be one of its modules.
                yield from (name for alias in node.names if _spec(name := f"{base}.{alias.name}") is not None)


def _with_parents(module: str) -> list[str]:
    """A module and the packages around it, whose code runs when it is imported."""
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


@cache
def _is_own(root: str) -> bool:
    """Whether a package belongs to no installed library; this one never does."""
    spec = _spec(root)
    if root == PACKAGE or spec is None:
        return root == PACKAGE
    places = [spec.origin or ""] if spec.has_location else list(spec.submodule_search_locations or ())
    return not all(map(_is_library, places))


def _is_library(place: str) -> bool:
    path = Path(place).resolve()
    return not INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(python) for python in PYTHON)


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Where a module is; null where there is none. Nothing is imported to find out."""
    parent, _, _ = module.rpartition(".")
    if not parent:
        try:
            return find_spec(module)
        except ValueError:  # a module without a file, such as a notebook's
            return None
    around = _spec(parent)
    if around is None or around.submodule_search_locations is None:
        return None
    found = (FileFinder(place, *LOADERS).find_spec(module) for place in around.submodule_search_locations)
    return next((spec for spec in found if spec is not None), None)
