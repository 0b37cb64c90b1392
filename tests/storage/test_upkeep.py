"""cache ls, verify and gc."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from ecoflap.cli.cache import bytes_in_words, main, size
from ecoflap.storage.cache.entries import key_hash
from ecoflap.storage.cache.store import Store
from ecoflap.storage.cache.upkeep import ABANDONED, collect_garbage, entries, problem


def fill(root: Path, count: int = 3) -> list[Path]:
    """Entries of about a kilobyte, the first the longest unused."""
    paths = []
    for number in range(count):
        key = {"model": f"m{number}"}
        Store(root).get_or_compute("scores", key, lambda: "x" * 1000)
        paths.append(root / "scores" / key_hash(key))
        os.utime(paths[-1] / "meta.json", (1000 + number, 1000 + number))
    return paths


def test_ls_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = fill(tmp_path)
    assert main(["ls", "--cache", str(tmp_path)]) == 0
    assert main(["verify", "--cache", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "3 entries" in shown
    assert shown.count("sound") == 3
    (paths[1] / "value.json").write_text('"other"')
    (paths[2] / "value.json").unlink()
    assert main(["verify", "--cache", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "its checksum differs" in shown
    assert "it holds no value" in shown
    assert "2 damaged" in shown


@pytest.mark.parametrize("command", ["ls", "verify", "gc"])
@pytest.mark.parametrize("below", [1, 2])
def test_a_folder_inside_a_cache_is_not_one(
    command: str, below: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry,) = fill(tmp_path, 1)
    inside, found = {1: (entry.parent, entry), 2: (entry, entry / "meta.json")}[below]
    assert main([command, "--cache", str(inside), "--max-size", "0"]) == 2
    assert f"{inside} is not a cache: no cache has {found}" in capsys.readouterr().err
    assert entry.is_dir()


def test_gc_lets_go_of_the_damaged_then_of_the_longest_unused(tmp_path: Path) -> None:
    paths = fill(tmp_path, 4)
    (paths[3] / "value.json").write_text("")
    Store(tmp_path).get_or_compute("scores", {"model": "m0"}, lambda: None)  # used just now
    two = sum(info.size for info in entries(tmp_path) if info.path in (paths[0], paths[2]))
    assert main(["gc", "--cache", str(tmp_path), "--max-size", str(two)]) == 0
    assert [path.exists() for path in paths] == [True, False, True, False]
    assert main(["gc", "--cache", str(tmp_path), "--max-size", "0"]) == 0
    assert not list(entries(tmp_path))


def test_gc_removes_what_died_processes_left_and_nothing_fresh(tmp_path: Path) -> None:
    (kept,) = fill(tmp_path, 1)
    old, fresh, lease = (kept.with_name(name) for name in (".tmp-host-1-aa", ".tmp-host-2-bb", "abc.lease"))
    for path in (old, fresh):
        path.mkdir()
    lease.write_text("{}")
    past = time.time() - ABANDONED - 10
    for path in (old, lease):
        os.utime(path, (past, past))
    assert collect_garbage(tmp_path, 10**9)[0] == 0
    assert [path.exists() for path in (kept, old, fresh, lease)] == [True, False, True, False]


def test_gc_passes_by_a_lease_that_is_released_meanwhile(tmp_path: Path) -> None:
    (kept,) = fill(tmp_path, 1)
    kept.with_name("abc.lease").symlink_to("released")  # listed, and not there
    assert collect_garbage(tmp_path, 10**9)[0] == 0


def test_an_entry_that_a_run_replaces_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, gone = fill(tmp_path, 2)
    inside = Path.iterdir

    def listed(folder: Path) -> list[Path]:
        """What is in a folder that is removed before the next look at it, if it is the second entry."""
        found = list(inside(folder))
        if folder == gone:
            shutil.rmtree(folder)
        return found

    monkeypatch.setattr(Path, "iterdir", listed)
    assert main(["ls", "--cache", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert kept.name[:12] in shown
    assert gone.name[:12] not in shown
    (last,) = entries(tmp_path)
    shutil.rmtree(kept)
    assert problem(last) is None, "what is gone is not damaged"


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--cache", str(tmp_path / "nowhere")]) == 2
    assert "--cache" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["gc", "--cache", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["gc", "--cache", str(tmp_path), "--max-size", "much"])


@pytest.mark.parametrize(
    ("text", "bytes_"), [("4096", 4096), ("10GB", 10**10), ("1.5 mb", 1_500_000), ("2 KiB", 2048)]
)
def test_sizes(text: str, bytes_: int) -> None:
    assert size(text) == bytes_


def test_sizes_in_words() -> None:
    shown = [bytes_in_words(value) for value in (0, 999, 1500, 2_000_000_000)]
    assert shown == ["0 B", "999 B", "1.5 KB", "2 GB"]
