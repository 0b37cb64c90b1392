"""Run a function in several processes that are copies of this one, as the processes of one run."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch

from ecoflap.distributed.processes import joined
from tests.ports import free_ports


class ChildError(AssertionError):
    """What the processes that failed say, in the order of their ranks."""


def together(count: int, work: Callable[[], Any], joining: bool = True) -> list[Any]:
    """What the function returns in each of ``count`` processes.

    Args:
        count: of the processes.
        work: the function.
        joining: whether the processes have joined each other; otherwise the function does that.

    Raises:
        ChildError: if one of them fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children = [_fork(variables, work, folder, joining) for variables in environments(count)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            said = [file.read_text() for file in sorted(folder.glob("*.txt"))]
            raise ChildError("\n".join(said) or f"exit codes {codes}")
        # They are this test's own files.
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def environments(count: int) -> Iterator[Mapping[str, str]]:
    """What a launcher tells each process."""
    (port,) = free_ports(1)
    for rank in range(count):
        yield {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


def _fork(variables: Mapping[str, str], work: Callable[[], Any], folder: Path, joining: bool) -> int:
    child = os.fork()
    if child == 0:
        _run(variables, work, folder, joining)
    return child


def _run(variables: Mapping[str, str], work: Callable[[], Any], folder: Path, joining: bool) -> NoReturn:
    """What a copy does; it never returns to pytest."""
    code = 1
    try:
        torch.set_num_threads(1)
        os.environ.update(variables)
        with joined("cpu") if joining else nullcontext():
            torch.save(work(), folder / f"{variables['RANK']}.pt")
        code = 0
    except BaseException:
        (folder / f"{variables['RANK']}.txt").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def as_process(rank: int, size: int) -> Iterator[None]:
    """Take the rank of a process for functions that compute a share, without any other process."""
    from unittest.mock import patch

    from ecoflap.distributed import collectives
    from ecoflap.prune import row_shards

    with ExitStack() as stack:
        for module in (collectives, row_shards):
            stack.enter_context(patch.multiple(module, rank=lambda: rank, size=lambda: size))
        yield
