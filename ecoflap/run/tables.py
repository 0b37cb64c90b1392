"""Choices from the rows of tables in ``conf``: models that differ in size, image sets that differ in name."""

from __future__ import annotations

from functools import partial
from typing import Any

import yaml

from ecoflap.run.lazy_store import store
from ecoflap.run.registry import HIDDEN
from ecoflap.storage.installation import conf_folder


def register() -> None:
    """Make every row a choice of its groups."""
    for name, row in rows("models").items():
        store("model", name, partial(model, name, row), package="_global_")
    for name in rows("picture_sets"):
        store("calibration", name, partial(picture_set, "calibration", name, "train"))
        store("task", name, partial(picture_set, "task", name, "test"))


def model(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """The config of a row of ``models``."""
    return {"defaults": [row["base"], "_self_"], "model": {"name": name, **without(row, "about", "base")}}


def picture_set(group: str, name: str, split: str) -> dict[str, Any]:
    """The config of a row of ``picture_sets``."""
    part = f"/{HIDDEN}/{group}/Classification@_here_"
    return {"defaults": [part, "_self_"], "name": name, "dataset": name, "split": split}


def rows(table: str) -> dict[str, dict[str, Any]]:
    """The rows of a table, by the name that chooses one."""
    text = (conf_folder() / f"{table}.yaml").read_text(encoding="utf-8")
    found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return dict(found)


def about(group: str, name: str) -> str | None:
    """The description of a row; None if no table has such a choice."""
    table = {"model": "models", "calibration": "picture_sets", "task": "picture_sets"}.get(group)
    row = rows(table).get(name) if table else None
    return str(row["about"]) if row else None


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """A row without some of its values."""
    return {name: value for name, value in row.items() if name not in names}
