"""What a result was made from: the user's own code and files, and whether they have changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ecoflap.storage.results import sources
from ecoflap.storage.results.sources import outdated, sources_of
from tests.storage.test_code import forget
from tests.storage.test_results import make_result


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of a task, a loss and files of the user."""
    (tmp_path / "own_task_source.py").write_text("class Outer:\n    class Inner: ...\n")
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "weights").write_text("one")
    (tmp_path / "wanda").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    forget()
    return {
        "model": {"_target_": "ecoflap.models.Some", "path": "lm", "loss": "own_task_source.loss"},
        "pruner": {"_target_": "ecoflap.prune.Wanda", "name": "wanda", "text": "a/b"},
        "task": {"tasks": {"one": {"_target_": "own_task_source.Outer.Inner", "path": "gone"}}},
        "score": {"_target_": "nowhere.Scorer"},
        "cache": str(tmp_path),
    }


def test_only_what_is_not_of_the_package_counts(config: dict[str, Any]) -> None:
    found = sources_of(config)
    hashes = {key: part["hash"] for key, part in found["parts"].items()}
    assert hashes["score"] is None, "there is nothing to read"
    assert hashes["model.loss"] is not None
    assert hashes["model.loss"] == hashes["task.tasks.one"]
    assert set(hashes) == {"score", "model.loss", "task.tasks.one"}
    assert set(found["files"]) == {"model.path"}, "a name that a folder happens to have is no path"


def test_what_has_changed_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    result = make_result(config=config, sources=sources_of(config))
    (tmp_path / "lm" / "below").mkdir()
    assert outdated(result, config) == []
    (tmp_path / "lm" / "weights").write_text("three")
    (tmp_path / "own_task_source.py").write_text("class Outer: ...\n")
    forget()
    other, files = outdated(result, config)
    assert "model.loss own_task_source.loss: " in other
    assert "task.tasks.one own_task_source.Outer.Inner: " in other
    assert files == "files that it was made from have changed since (model.path=lm)"
    assert outdated(make_result(config=config), config) == [], "the record names none"


@pytest.mark.parametrize(
    ("key", "value"), [("lavis_checkpoint", "part"), ("shards", ["./whole", "./part"]), ("files", ["part"])]
)
@pytest.mark.usefixtures("config")
def test_each_file_that_an_option_names_counts(key: str, value: Any) -> None:
    Path("part").write_text("one")
    Path("whole").write_text("all")
    config = {"model": {key: value}}
    result = make_result(config=config, sources=sources_of(config))
    assert outdated(result, config) == []
    Path("part").write_text("three")
    assert outdated(result, config) == [
        f"files that it was made from have changed since (model.{key}={value})"
    ]


def test_a_file_in_a_folder_below_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"calibration": {"path": str(tmp_path / "set")}}
    for name in ("cat/1.png", "dog/1.png", ".git/index"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_text("1")
    result = make_result(config=config, sources=sources_of(config))
    (tmp_path / "set" / ".git" / "index").write_text("22")
    assert outdated(result, config) == []
    (tmp_path / "set" / "dog" / "1.png").write_text("22")
    assert len(outdated(result, config)) == 1

    before = (tmp_path / "set" / "cat" / "1.png").stat().st_mtime_ns
    result = make_result(config=config, sources=sources_of(config))
    (tmp_path / "set" / "cat" / "1.png").write_text("a copy that keeps its time")
    os.utime(tmp_path / "set" / "cat" / "1.png", ns=(before, before))
    assert len(outdated(result, config)) == 1

    # The folder, its two and the first one's file: dog counts by its time.
    monkeypatch.setattr(sources, "MOST", 4)
    result = make_result(config=config, sources=sources_of(config))
    (tmp_path / "set" / "dog" / "1.png").write_text("333")
    assert outdated(result, config) == []
    os.utime(tmp_path / "set" / "dog", ns=(0, 0))
    (tmp_path / "set" / "dog" / "2.png").write_text("1")
    assert len(outdated(result, config)) == 1
