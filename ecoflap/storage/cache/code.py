"""A hash of the code that computed a stored value: the source of some modules and of all that they import.

Modules of an installed library count by the library's version, those of Python not at all. Every other module
counts by its source, whether it belongs to this package or to a user's code outside of it.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from ecoflap.errors import UserError

PACKAGE = __name__.partition(".")[0]
PYTHON = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
INSTALLED = {"site-packages", "dist-packages"}  # of this environment, or of one whose libraries it uses

DISTRIBUTIONS = {"PIL": "pillow", "open_clip": "open_clip_torch"}
"""{what parts of this package import: the library that has it}, where the names differ."""
WITHOUT_NUMBERS = {
    "huggingface_hub",
    "hydra",
    "omegaconf",
    "psutil",
    "rich",
    "safetensors",
    "typing_extensions",
}
"""Libraries that show, find and store values, and compute none."""

IMPORTERS = ("import_module", "__import__")
"""Functions that import a module by its name."""

LOADERS = ((SourceFileLoader, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES))


def in_package(module: str) -> bool:
    """Whether a module is one of this package, and not of the user's own or of a library."""
    return module.partition(".")[0] == PACKAGE


def source_hash(*modules: str, package: bool = True) -> str:
    """A hash of the source of modules and of all modules that they import, directly or not, in functions too.

    The versions of the libraries that these import are part of it. A source is read once per process, when
    it is first needed: a later edit changes neither the code that runs nor its hash.

    Args:
        modules: their dotted names.
        package: whether modules of this package count, and libraries.

    Raises:
        UserError: if one of these modules has no source file.
    """
    roots = {PACKAGE, *(module.partition(".")[0] for module in modules)}
    found: dict[str, str] = {}
    libraries: set[str] = set()
    pending = [name for module in modules for name in _with_parents(module)]
    while pending:
        module = pending.pop()
        if module in found:
            continue
        found[module], imported = _read(module)
        tops = {name: name.partition(".")[0] for name in imported}
        counted = [name for name, top in tops.items() if top in roots or _is_own(top)]
        pending += [name for name in counted if package or tops[name] != PACKAGE]
        libraries |= set(tops.values()).difference(tops[name] for name in counted)
    digest = hashlib.sha256()
    for module in sorted(found):
        digest.update(f"{module} {found[module]}\n".encode())
    for library in sorted(libraries - WITHOUT_NUMBERS - sys.stdlib_module_names) if package else ():
        digest.update(f"{library} {_version(library)}\n".encode())
    return digest.hexdigest()[:32]


def function_hash(function: Callable[..., Any], path: str | None = None) -> str:
    """A hash of the source that a function or a callable object runs, and of what that imports.

    Args:
        function: also one that is decorated, partly applied, or a method.
        path: its dotted path, if it was found by one.
    """
    written = function
    while isinstance(written, partial):
        written = written.func
    written = inspect.unwrap(written)
    known = {getattr(written, "__module__", None) or type(written).__module__, type(written).__module__}
    known |= {path.rpartition(".")[0]} if path and "." in path else set()
    modules = sorted(module for module in known if _is_own(module.partition(".")[0]))
    try:
        return source_hash(*modules) if modules else _file_hash(written)
    except UserError:  # no module that can be imported anew: a script or a notebook
        return _file_hash(written)


def _file_hash(function: Any) -> str:
    """A hash of the file that a function is written in; of nothing where it has none."""
    code = getattr(function, "__code__", None)
    file = Path("" if code is None else code.co_filename)
    return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()[:32]


@cache
def package_hash() -> str:
    """A hash of every source file of this package."""
    return folder_hash(Path(__file__).parents[2])[:12]


def folder_hash(folder: Path) -> str:
    """A hash of every Python file in a folder, by its name there."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    """A hash of a module's source, and the modules that it imports, with their parent packages."""
    spec = _spec(module)
    if spec is None or (spec.has_location and not Path(spec.origin or "").is_file()):
        raise UserError(
            f"the source of {module} is missing, so what it computes can't be cached; put its file back"
        )
    if not spec.has_location:  # a namespace package
        return "", ()
    file = Path(spec.origin or "")
    content = file.read_bytes()
    if file.suffix != ".py":  # a compiled module
        return hashlib.sha256(content).hexdigest(), ()
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    tree = ast.parse(content)
    modules = list(_imports(tree, package))
    if any(name.encode() in content for name in IMPORTERS):  # else no expression needs a look
        modules += _imports_by_name(tree, package)
    imported = dict.fromkeys(name for found in modules for name in _with_parents(found))
    return hashlib.sha256(content).hexdigest(), tuple(imported)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that a source imports, but for those under ``if TYPE_CHECKING``, which never run."""
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = resolve_name("." * node.level + base, package)
            yield base
            if _is_own(base.partition(".")[0]):
                # What is imported from a package may be one of its modules.
                yield from (name for alias in node.names if _spec(name := f"{base}.{alias.name}") is not None)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement in a node that may run."""
    for block in ("body", "handlers", "cases", "orelse", "finalbody"):
        for child in getattr(node, block, ()):
            if isinstance(child, ast.If) and _is_type_checking(child.test):
                yield from _statements(ast.Module(child.orelse, []))
            elif isinstance(child, ast.If) and _is_type_checking(getattr(child.test, "operand", None)):
                yield from _statements(ast.Module(child.body, []))  # not TYPE_CHECKING
            else:
                yield child
                yield from _statements(child)


def _is_type_checking(test: ast.AST | None) -> bool:
    return isinstance(test, ast.Name | ast.Attribute) and ast.unparse(test).endswith("TYPE_CHECKING")


def _imports_by_name(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that ``import_module`` and ``__import__`` get by a name that the source spells out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS:
            match [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "name")]:
                case [ast.Constant(value=str(name)), *_]:
                    with suppress(ImportError):  # a name that is relative to another package
                        yield resolve_name(name, package)


def _with_parents(module: str) -> list[str]:
    """A module and its parent packages, whose code runs when it is imported."""
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


@cache
def _is_own(root: str) -> bool:
    """Whether a top-level package is not part of an installed library; this package never is."""
    spec = _spec(root)
    if root == PACKAGE or spec is None:
        return root == PACKAGE
    locations = [spec.origin or ""] if spec.has_location else list(spec.submodule_search_locations or ())
    return not all(map(_is_library, locations))


def _is_library(location: str) -> bool:
    path = Path(location).resolve()
    return not INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(python) for python in PYTHON)


@cache
def _version(library: str) -> str:
    """The version of an installed library, by the name that it is imported by; empty if there is none."""
    try:
        return version(DISTRIBUTIONS.get(library, library))
    except PackageNotFoundError:
        owners = _distributions().get(library, []) if _spec(library) is not None else []
        return " ".join(sorted(map(version, owners)))


@cache
def _distributions() -> Mapping[str, list[str]]:
    """{what is imported: the libraries that have it}; reading it takes a moment."""
    return packages_distributions()


@cache
def _spec(module: str) -> ModuleSpec | None:
    """The spec of a module, without importing anything; None if there is no such module."""
    parent, _, _ = module.rpartition(".")
    if not parent:
        try:
            return find_spec(module)
        except ValueError:  # a module without a file, such as a notebook's
            return None
    package = _spec(parent)
    if package is None or package.submodule_search_locations is None:
        return None
    folders = map(str, package.submodule_search_locations)  # transformers makes paths of its own
    found = (FileFinder(folder, *LOADERS).find_spec(module) for folder in folders)
    return next((spec for spec in found if spec is not None), None)
