"""Choices that are a row of a table in ``conf``: models that differ in their sizes, sets in their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

CONF = Path(__file__).parents[2] / "conf"


def register() -> None:
    """Make every row a choice of its groups."""
    store = ConfigStore.instance().store
    for name, row in rows("models").items():
        base, values = row["base"], without(row, "about", "base")
        node = {"defaults": [base, "_self_"], "model": {"name": name, **values}}
        store(group="model", name=name, node=node, package="_global_", provider="ecoflap")
    for name in rows("picture_sets"):
        for group, split in (("calibration", "train"), ("task", "test")):
            part = f"/options/{group}/Classification@_here_"
            node = {"defaults": [part, "_self_"], "name": name, "dataset": name, "split": split}
            store(group=group, name=name, node=node, provider="ecoflap")


def rows(table: str) -> dict[str, dict[str, Any]]:
    """The rows of a table, by the name that chooses one."""
    text = (CONF / f"{table}.yaml").read_text(encoding="utf-8")
    found = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return dict(found)


def about(group: str, name: str) -> str | None:
    """What a row describes; null where no table has such a choice."""
    table = {"model": "models", "calibration": "picture_sets", "task": "picture_sets"}.get(group)
    row = rows(table).get(name) if table else None
    return str(row["about"]) if row else None


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """A row without some of its values."""
    return {name: value for name, value in row.items() if name not in names}
