"""Work on the pretend accelerator is done in a child process: the device changes PyTorch for all of it."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from ecoflap.run import pipeline
from ecoflap.storage.results import Result
from tests.accelerator import device
from tests.cli.conftest import composed, text_run, tiny_llama, token_file  # noqa: F401  (fixtures)

HANGS = 300  # seconds


@pytest.fixture(autouse=True)
def _needs_device() -> None:
    if not device.is_available():
        pytest.skip("this PyTorch can't register a device from Python")


def _child(answer: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # threads don't survive a fork
    try:
        device.install()
        answer.send((work(*arguments), None))
    except BaseException:
        answer.send((None, traceback.format_exc()))


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process that has the device; where it raises, the test fails."""
    context = multiprocessing.get_context("fork")  # nothing is imported anew
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        result, failure = ours.recv() if ours.poll(HANGS) else (None, f"nothing came back in {HANGS} s")
    except EOFError:
        result, failure = None, "the process died"
    process.kill()
    process.join()
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return result


def on_both(overrides: list[str], folder: Path) -> tuple[Result, Result]:
    """Run on the CPU, in ``folder / "cpu"``, and on the device, in ``folder / "npy"``."""

    def run(place: str) -> Result:
        (folder / place).mkdir()
        result = pipeline.run(
            composed([*overrides, f"device={place}", "cache_mode=off", "tracking=none"]), folder / place
        )
        assert result is not None
        return result

    return run("cpu"), in_child(run, "npy")
