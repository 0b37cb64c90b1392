"""Nothing in the tests may ask a hub or a W&B server for anything.

A process computes in one thread: pytest has a process per core, and models of this size wait longer for
threads than they compute.
"""

import gc
import io
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from fnmatch import fnmatch

import pytest

from ecoflap.console.startup import collect_less_garbage

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
collect_less_garbage()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as variants the parameters of a test that ``every_run`` does not name."""
    functions = defaultdict[object, list[pytest.Item]](list)
    for item in items:
        if item.get_closest_marker("every_run") is not None:
            functions[item.nodeid.partition("[")[0]].append(item)
    for function, cases in functions.items():
        others = [case for case in cases if not in_every_run(case)]
        if len(others) == len(cases) > 1:
            raise pytest.UsageError(f"every_run names no parameter of {function}")
        for case in others:
            case.add_marker(pytest.mark.variant)


def in_every_run(item: pytest.Item) -> bool:
    """Whether a pattern of ``every_run`` matches the parameters in a test's name, or is one of them."""
    parameters = item.name.partition("[")[2].removesuffix("]")
    marker = item.get_closest_marker("every_run")
    return marker is None or any(
        fnmatch(parameters, pattern) or pattern in parameters.split("-") for pattern in marker.args
    )


def pytest_collection_finish() -> None:
    """Leave the imported libraries and the tests themselves out of every garbage collection."""
    gc.freeze()


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo what a command run in this process did to the root logger, for the tests after it."""
    root = logging.getLogger()
    level, handlers = root.level, set(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - handlers:
        # By name, because pytest's own handlers come and go between the phases of a test.
        if type(handler).__name__ == "ConsoleHandler":
            root.removeHandler(handler)


@pytest.fixture(autouse=True)
def restored_hydra() -> Iterator[None]:
    """Forget the config of a command run in this process, which the pipeline would take for its own."""
    yield
    if (module := sys.modules.get("hydra.core.hydra_config")) is not None:
        module.HydraConfig.instance().cfg = None


@pytest.fixture
def close_output(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the output one that its reader, such as ``head``, has closed, to the end of the test."""

    def close() -> None:  # in the test, since pytest sets the output itself when a fixture is ready
        reader, writer = os.pipe()
        os.close(reader)
        unbuffered = os.fdopen(writer, "wb", buffering=0)
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(unbuffered, write_through=True))

    return close
