"""The API reference of the docs site: a MkDocs hook that writes one page per package, from the source tree.

The list of modules needs no upkeep: a new module appears on its package's page, and a new package gets a page
and an entry in the navigation. The source is only read, so no page needs torch.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = "ecoflap"
DEEPEST = 2  # folders below the package that get a page of their own; modules further down are on that page
PLAIN = {"show_root_heading": False, "show_root_toc_entry": False}  # the page's title is the heading


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Appends the pages of all packages to the section whose first entry is ``reference/index.md``.

    Args:
        config: The site's configuration, of which only the navigation changes.
    """
    sections: list[dict[str, Any]] = config.nav or []
    lists = [entries for section in sections for entries in section.values()]
    (reference,) = (entries for entries in lists if entries[0] == "reference/index.md")
    reference.extend({package: _path(package)} for package in modules_by_page())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the files of the site.

    Args:
        files: The files found in ``docs/``.
        config: The site's configuration.
    """
    for package, modules in modules_by_page().items():
        files.append(File.generated(config, _path(package), content=_page(package, modules)))
    return files


def modules_by_page() -> dict[str, dict[str, str]]:
    """``{package: {public module: its first sentence}}``, a page per package."""
    pages: dict[str, dict[str, str]] = {}
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules = pages.setdefault(".".join(parts[:-1][: DEEPEST + 1]), {})
        if not parts[-1].startswith("_"):
            modules[".".join(parts)] = _first_sentence(file)
    return pages


def _path(package: str) -> str:
    return f"reference/{package}.md"


def _first_sentence(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"\.(?: (?=[A-Z])|$)", paragraph)[0]


def _page(package: str, modules: dict[str, str]) -> str:
    """Markdown: the package's docstring, for the top package with what it exports, and then its modules."""
    listed = "\n".join(f"- [`{name}`](#{name}): {sentence}" for name, sentence in modules.items())
    own = _block(package, PLAIN if package == PACKAGE else PLAIN | {"members": False})
    return "\n\n".join([f"# {package}", own, listed, *(_block(name, {}) for name in modules)]) + "\n"


def _block(name: str, options: dict[str, bool]) -> str:
    """A block that mkdocstrings turns into the documentation of a module."""
    return f"::: {name}\n    options: {json.dumps(options)}"
