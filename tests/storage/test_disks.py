"""Disks that are full or read-only: no wrong result, a clear message, and a run that goes on."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from logging.config import dictConfig
from pathlib import Path

import pytest
import torch
from torch import nn

import ecoflap
from ecoflap.cli import command
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.report import PruneReport
from ecoflap.run.refusals import describe
from ecoflap.storage.cache.store import Store
from ecoflap.storage.lease import held
from ecoflap.storage.results import Result
from tests.api.conftest import llama
from tests.cli.conftest import run, text_run, tiny_llama, token_file  # noqa: F401 - fixtures

pytestmark = pytest.mark.long


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"mounting a file system is not allowed here: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no room."""
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_costs_a_warning(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(small_disk / "cache")
    assert store.get_or_compute("scores", {"seed": 0}, lambda: "x" * 200_000) == ("x" * 200_000, False)
    assert any(
        "cannot write to the store" in message and "cache_mode=off" in message for message in caplog.messages
    )
    assert store.get_or_compute("scores", {"seed": 0}, lambda: "again") == ("again", False)
    assert not [path for path in small_disk.glob("cache/scores/*") if path.name.endswith(".lease")]
    fill(small_disk)
    assert Store(small_disk / "cache").get_or_compute("scores", {"seed": 1}, lambda: "small") == (
        "small",
        False,
    )


def test_a_block_that_does_not_fit_is_pruned_again(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer = Layer("0.weight", nn.Linear(200, 200))
    report = PruneReport({layer.name: torch.ones(200, 200, dtype=torch.bool)}, {layer.name: None})
    finished = FinishedBlocks(small_disk / "blocks", "key")
    finished.write(0, [layer], report, 1.0)
    assert "block 0 could not be stored" in caplog.text
    assert finished.read(0) is None


def test_a_read_only_disk_is_read(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    Store(small_disk / "cache").get_or_compute("scores", {"seed": 0}, lambda: 1.5)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = Store(small_disk / "cache")
    assert store.get_or_compute("scores", {"seed": 0}, lambda: None) == (1.5, True)
    with caplog.at_level(logging.WARNING):
        assert store.get_or_compute("scores", {"seed": 1}, lambda: 2.5) == (2.5, False)
    assert any("cannot write to the store" in message for message in caplog.messages)


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_run_with_such_a_cache_has_the_same_result(
    run: Callable[..., Result],
    text_run: list[str],
    small_disk: Path,
    state: str,
) -> None:
    if state == "full":
        fill(small_disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    here = run(text_run, "here")
    there = run([*text_run, f"cache={small_disk / 'cache'}"], "there")
    assert (there.metrics, there.sparsity) == (here.metrics, here.sparsity)


def test_a_full_disk_leaves_no_lease(small_disk: Path) -> None:
    """Which would be waited for, as if its owner were about to write it."""
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"), held(small_disk / "lease", str):
        pass
    assert not (small_disk / "lease").exists()


def test_commands_name_a_read_only_disk(
    small_disk: Path, run: Callable[..., Result], text_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run([*text_run, "model.save=true"], "run")
    folder = small_disk.parent / "run"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert command.main(["convert", str(folder), str(small_disk / "model"), "--to", "bitmask"]) == 2
    assert "the disk is read-only; choose another place" in capsys.readouterr().err
    with pytest.raises(ValueError, match="Unable to configure") as refused:
        dictConfig(
            {
                "version": 1,
                "handlers": {"file": {"class": "logging.FileHandler", "filename": f"{small_disk}/main.log"}},
                "root": {"handlers": ["file"]},
            }
        )
    said = f"{small_disk}/main.log: the disk is read-only; choose another place"
    assert describe(refused.value) == said


def test_a_result_is_saved_whole_or_not_at_all(small_disk: Path) -> None:
    """Wherever the disk fills up: in the weights, the tokenizer, the masks or the record."""
    one = llama()
    result = ecoflap.prune(one.module, one.processor, sparsity=0.5, pruner="magnitude", score="none")
    folder, said, left = small_disk / "model", list[str](), list[Path]()
    for free in range(4, 61, 4):
        (small_disk / "filler").write_bytes(b"x" * (64 - free) * 1024)
        try:
            ecoflap.save(result, folder)
            break
        except UserError as error:
            said.append(str(error))
            left += folder.iterdir()
    assert len(said) > 5
    assert all("no space left for the checkpoint" in one for one in said)
    assert not left
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="model can't be written to; choose another folder"):
        ecoflap.save(result, folder)
