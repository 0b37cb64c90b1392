"""The stage store: hits, misses, damage, races."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import struct
from pathlib import Path
from typing import Any

import pytest

from ecoflap.errors import UserError
from ecoflap.storage.cache.entries import AS_JSON, key_hash, write_entry
from ecoflap.storage.cache.store import Store
from ecoflap.storage.files import replacing

pytestmark = pytest.mark.long

KEY = {"model": "tiny", "seed": 0, "eps": 1e-3}


def compute_once(calls: list[int], value: Any = 1.5) -> Any:
    calls.append(1)
    return value


def entry(root: Path) -> Path:
    return root / "score" / key_hash(KEY)


def test_second_call_is_a_hit_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    with caplog.at_level(logging.INFO):
        assert Store(tmp_path).get_or_compute("score", KEY, lambda: compute_once(calls)) == (1.5, False)
        assert Store(tmp_path).get_or_compute(
            "score", dict(reversed(KEY.items())), lambda: compute_once(calls)
        ) == (1.5, True)
    assert len(calls) == 1
    assert "computing" in caplog.messages[0]
    assert "s saved" in caplog.messages[1]
    assert sorted(path.name for path in entry(tmp_path).iterdir()) == ["meta.json", "value.json"]
    assert json.loads((entry(tmp_path) / "meta.json").read_text())["key"] == KEY
    assert [path.name for path in (tmp_path / "score").iterdir()] == [entry(tmp_path).name]


@pytest.mark.parametrize("change", [{"seed": 1}, {"extra": None}, {"eps": math.nextafter(1e-3, 1)}])
def test_another_key_is_a_miss(tmp_path: Path, change: dict[str, Any]) -> None:
    store = Store(tmp_path)
    store.get_or_compute("score", KEY, lambda: 1)
    assert store.get_or_compute("score", {**KEY, **change}, lambda: 2) == (2, False)
    assert store.get_or_compute("other", KEY, lambda: 3) == (3, False)


def test_floats_survive_bit_for_bit_and_a_miss_reads_like_a_hit(tmp_path: Path) -> None:
    values = (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.nan, math.inf, -math.inf)
    missed, _ = Store(tmp_path).get_or_compute("score", KEY, lambda: {"values": values, 3: "x"})
    found, hit = Store(tmp_path).get_or_compute("score", KEY, lambda: None)
    assert hit
    assert repr(missed) == repr(found)
    assert list(found) == ["values", "3"]
    assert [struct.pack("d", value) for value in found["values"]] == [
        struct.pack("d", value) for value in values
    ]


def damage(kind: str, folder: Path) -> None:
    value, meta = folder / "value.json", folder / "meta.json"
    if kind == "truncated":
        value.write_text(value.read_text()[:2])
    elif kind == "edited":
        value.write_text("2.5")
    elif kind == "missing":
        value.unlink()
    elif kind == "meta":
        meta.write_text(meta.read_text()[:20])
    elif kind == "not a mapping":
        meta.write_text("[1]")
    else:
        meta.write_text(meta.read_text().replace('"tiny"', '"other"'))


@pytest.mark.parametrize("kind", ["truncated", "edited", "missing", "meta", "not a mapping", "another key"])
def test_damaged_entry_is_computed_again_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    calls: list[int] = []
    Store(tmp_path).get_or_compute("score", KEY, lambda: compute_once(calls))
    damage(kind, entry(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert Store(tmp_path).get_or_compute("score", KEY, lambda: compute_once(calls)) == (1.5, False)
    assert len(calls) == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert str(entry(tmp_path)) in warnings[0]
    assert Store(tmp_path).get_or_compute("score", KEY, lambda: compute_once(calls)) == (1.5, True)
    assert len(list((tmp_path / "score").iterdir())) == 1


def test_modes(tmp_path: Path) -> None:
    assert Store(tmp_path, "readonly").get_or_compute("score", KEY, lambda: 1) == (1, False)
    assert Store(tmp_path, "off").get_or_compute("score", KEY, lambda: 1) == (1, False)
    assert not list(tmp_path.iterdir())
    Store(tmp_path).get_or_compute("score", KEY, lambda: 1)
    assert Store(tmp_path, "refresh").get_or_compute("score", KEY, lambda: 2) == (2, False)
    assert Store(tmp_path, "readonly").get_or_compute("score", KEY, lambda: 3) == (2, True)
    assert Store(tmp_path, "off").get_or_compute("score", KEY, lambda: 3) == (3, False)


def test_unknown_mode_and_key_that_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cache_mode=always is not known; .* use, refresh, readonly, off$"):
        Store(tmp_path, "always")
    with pytest.raises(TypeError, match="plain JSON"):
        Store(tmp_path).get_or_compute("score", {"path": tmp_path}, lambda: 1)


def test_root_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "store")
    with caplog.at_level(logging.WARNING):
        assert store.get_or_compute("score", KEY, lambda: 1) == (1, False)
        assert store.get_or_compute("score", {**KEY, "seed": 1}, lambda: 2) == (2, False)
    assert len(caplog.messages) == 1
    assert "cache_mode=off" in caplog.messages[0]


def test_failure_of_the_computation_is_the_callers_and_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        Store(tmp_path).get_or_compute("score", KEY, fail)
    assert not list(tmp_path.glob("*/*"))


def test_the_winner_of_a_race_is_used(tmp_path: Path) -> None:
    def slower() -> str:
        write_entry(
            entry(tmp_path), KEY, b'"winner"', AS_JSON, 0.0, replace=False
        )  # by a run that got no lease
        return "loser"

    assert Store(tmp_path).get_or_compute("score", KEY, slower) == ("winner", False)
    assert Store(tmp_path).get_or_compute("score", KEY, lambda: "late") == ("winner", True)


def racer(root: Path, mode: Any, barrier: Any, results: Any) -> None:
    got = []
    for round_number in range(40):
        key = {"round": round_number}
        barrier.wait(timeout=30)
        got.append(Store(root, mode).get_or_compute("score", key, lambda: list(range(50)))[0])
    results.put(all(value == list(range(50)) for value in got))


@pytest.mark.parametrize("mode", ["use", "refresh"])
def test_two_processes_race(tmp_path: Path, mode: str) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=racer, args=(tmp_path, mode, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert results.get()
    assert results.get()
    assert len(list((tmp_path / "score").iterdir())) == 40
    assert all(
        Store(tmp_path, "readonly").get_or_compute("score", {"round": number}, lambda: None)[1]
        for number in range(40)
    )


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as beside:
            beside.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
