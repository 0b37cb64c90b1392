"""One source of defaults: conf holds what differs from the options, and what shows the choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_class

from ecoflap.cli.choices import Choices
from ecoflap.run import registry, tables
from ecoflap.run.config import METHODS, register
from tests.cli.conftest import ROOT, composed

register()
FILES = sorted((group, file.stem) for group in METHODS for file in (ROOT / "conf" / group).glob("*.yaml"))
ROWS = [("model", name) for name in tables.rows("models")]
ROWS += [(group, name) for group in ("calibration", "task") for name in tables.rows("picture_sets")]


def written_in(group: str, name: str) -> tuple[list[str], dict[str, Any]]:
    """The configs that a choice takes values from, and the values of its own."""
    if name in (rows := tables.rows("models")) and group == "model":
        row = rows[name]
        return [row["base"]], tables.without(row, "about", "base")
    text = (ROOT / "conf" / group / f"{name}.yaml").read_text()
    node = yaml.safe_load(text)
    sources = [entry for entry in node.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    return sources, node.get(group, {}) if "@package _global_" in text else node


def values_of(group: str, name: str) -> dict[str, Any]:
    """The values of a choice, its sources' and its own."""
    sources, own = written_in(group, name)
    return merged(inherited(group, sources), own)


def inherited(group: str, sources: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for source in sources:
        if source.startswith("/options/"):
            name = source.split("/")[3].partition("@")[0]
            kinds = {target.rpartition(".")[2]: kind for target, kind in registry.PARTS[group].items()}
            found = merged(found, registry.defaults(kinds[name]))
        elif "@" not in source:
            found = merged(found, values_of(group, source))
    return found


def merged(first: Any, second: Any) -> Any:
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    return {**first, **{key: merged(first.get(key), value) for key, value in second.items()}}


def repeated(before: dict[str, Any], own: dict[str, Any]) -> list[str]:
    return [key for key, value in own.items() if key in before and before[key] == value]


def test_a_repeated_value_is_seen() -> None:
    assert repeated(inherited("task", ["/options/task/Mmlu@_here_"]), {"shots": 5, "limit": 3}) == ["shots"]


@pytest.mark.parametrize(("group", "name"), [*FILES, *[row for row in ROWS if row[0] == "model"]])
def test_no_value_in_conf_repeats_a_default(group: str, name: str) -> None:
    sources, own = written_in(group, name)
    assert repeated(inherited(group, sources), own) == []


@pytest.mark.parametrize(("group", "name"), FILES)
def test_a_file_names_its_part_through_its_options(group: str, name: str) -> None:
    target = written_in(group, name)[1].get("_target_")
    assert target is None or target not in registry.PARTS.get(group, {}), "its defaults list has to name it"


@pytest.mark.parametrize(("group", "name"), ROWS)
def test_a_row_of_a_table_is_a_choice(group: str, name: str) -> None:
    assert name in Choices().options(group)
    assert tables.about(group, name)
    config = composed([f"{group}={name}"])
    assert config[group].name == name
    assert not (ROOT / "conf" / group / f"{name}.yaml").exists(), "a choice is a file or a row"


@pytest.mark.parametrize(
    ("group", "target"), [(group, one) for group in registry.PARTS for one in registry.PARTS[group]]
)
def test_a_part_has_the_options_of_its_dataclass_alone(group: str, target: str) -> None:
    part = get_class(target)
    assert issubclass(part, registry.PARTS[group][target])
    assert registry.defaults(part) == registry.defaults(registry.PARTS[group][target])
    assert "__init__" in vars(part), "a part that is no dataclass itself would not check its options"


def test_hidden_options_are_no_choice() -> None:
    assert not [group for group in Choices().groups if group.split("/")[0] == registry.HIDDEN]


def test_a_file_without_options_of_the_store_composes(tmp_path: Path) -> None:
    (tmp_path / "pruner").mkdir()
    (tmp_path / "pruner/own.yaml").write_text("_target_: my.Class\n")
    assert Choices(str(tmp_path)).compose(["pruner=own"]).pruner == {"_target_": "my.Class"}
