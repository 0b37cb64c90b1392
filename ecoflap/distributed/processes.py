"""The processes of a run, as torchrun starts them: on one node, or on several of a Slurm job.

All of them run the same steps. Where samples, solves or predictions are shared out, each process has its part
of the work, and a collective operation gives all of them the whole result; everything else is done by each.
Only the first process writes the run's files; the others get temporary folders.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from ecoflap.console.progress import quiet
from ecoflap.errors import UserError

CONTROL_TIMEOUT = timedelta(days=1)
"""How long a process waits for another: that one may wait for what another run computes."""
START_TIMEOUT = timedelta(minutes=10)
"""How long the first and the last process may start apart."""
LAUNCHED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
LINGER = 5.0  # seconds

_store: distributed.Store | None = None  # of what processes tell each other beside collective operations
_control_group: Any = None  # carries objects and barriers
_joined, _times = False, 0


def rank() -> int:
    """The number of this process in its run, from 0."""
    return distributed.get_rank() if _joined else 0


def size() -> int:
    """The number of processes of the run."""
    return distributed.get_world_size() if _joined else 1


def control_group() -> Any:
    """The group that carries objects and barriers, on the CPU and with a long timeout.

    Sums and weights go through the default group, whose limit of half an hour ends processes that wait on
    accelerators for one that is gone.
    """
    return _control_group


def is_first() -> bool:
    """Whether this process is the only one of its run or the first."""
    return rank() == 0


@contextmanager
def joined(device: str = "auto") -> Iterator[int]:
    """Join the other processes of the run, if torchrun or a similar launcher has started several.

    What is pruned in this context, with the same arguments in all processes, is pruned by all of them
    together::

        with ecoflap.joined() as rank:
            result = ecoflap.prune(model, tokenizer, data=texts, sparsity=0.6)
            if rank == 0:
                ecoflap.save(result, "pruned")

    Args:
        device: ``cpu`` for processes without an accelerator; with any other, each process of a node takes an
            accelerator of its own.

    Yields:
        The number of this process, from 0.

    Raises:
        UserError: if another process has failed, with its error.
    """
    global _joined, _times
    if os.environ.get("WORLD_SIZE", "1") == "1" or not os.environ.keys() >= LAUNCHED:
        yield 0
        return
    _times += 1
    _initialise(device)
    _joined = True
    try:
        yield rank()
        _wait_for_all()
    except BaseException as error:
        _tell(error)
        raise
    finally:
        _joined = False


@contextmanager
def joined_in(folder: Path, device: str) -> Iterator[Path]:
    """Join the other processes of a run that writes to a folder; the first one alone logs and prints.

    Args:
        folder: the folder of the run.
        device: the device in the run's config.

    Yields:
        The folder of the run in the first process, and a folder inside it in each other one.

    Raises:
        UserError: if another process has failed, with its error.
    """
    with joined(device) as number:
        if size() == 1:
            yield folder
            return
        shared = [str(folder)]
        with naming_the_failed():
            distributed.broadcast_object_list(shared, src=0, group=control_group())
        own = Path(shared[0]) if number == 0 else Path(shared[0]) / "processes" / str(number)
        own.mkdir(parents=True, exist_ok=True)
        if number > 0:
            logging.getLogger().setLevel(logging.ERROR)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), quiet():
                yield own
            _wait_for_all()
            return
        try:
            yield own
            _wait_for_all()
        finally:
            shutil.rmtree(folder / "processes", ignore_errors=True)


def shared_folder(folder: Path) -> Path:
    """The folder of the run, from the folder of any process."""
    return folder if is_first() else folder.parents[1]


def _wait_for_all() -> None:
    """Wait until all processes have come here.

    Raises:
        UserError: if another process has failed.
    """
    with naming_the_failed():
        distributed.barrier(group=control_group())


@contextmanager
def naming_the_failed() -> Iterator[None]:
    """Name the process that failed, if an operation in this context fails because of it.

    Raises:
        UserError: if another process has failed.
    """
    try:
        yield
    except RuntimeError as error:
        reason = _failure()
        if reason is None and "onnection" not in str(error):
            raise
        raise UserError(reason or "another process of the run has ended; its log says why") from None


def _initialise(device: str) -> None:
    """Make the group of processes; a sweep's next run finds that of the one before."""
    global _store, _control_group
    accelerated = device != "cpu" and torch.accelerator.is_available()
    if accelerated:
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    if distributed.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if accelerated and torch.cuda.is_available() else "gloo"
    if _store is None:
        _store = _meet()
    distributed.init_process_group(
        backend,
        store=distributed.PrefixStore(_key("group"), _store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    _control_group = distributed.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)


def _meet() -> distributed.Store:
    """The store of the first process, which all of them connect to.

    Raises:
        UserError: if another program listens at its port, or a process does not come in time.
    """
    try:
        store: distributed.Store = next(rendezvous("env://", timeout=START_TIMEOUT))[0]
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"the processes of the run can't meet at {place}, which is MASTER_ADDR:MASTER_PORT"
            f" ({str(error).splitlines()[0]}); choose another port, for torchrun by --master-port, and see"
            " that all processes start"
        ) from None
    return store


def _key(name: str) -> str:
    """A key of the store, for this time that the processes have joined each other."""
    return f"ecoflap/{_times}/{name}"


def _tell(error: BaseException) -> None:
    """Tell the other processes why this one ends, unless it ends because of them.

    The first process, which may hold the store, waits a little for the others to read it.
    """
    global _control_group
    if _store is None:
        return
    said = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    with suppress(RuntimeError):  # the store has ended with the process that held it
        if not _store.check([_key("failed")]):
            _store.set(_key("failed"), f"process {rank() + 1} of {size()} has failed: {said}")
        first, others = is_first(), size() - 1
        _control_group = None  # whose connections would stay
        distributed.destroy_process_group()  # what ends the others, as they wait for this one
        until = time.monotonic() + LINGER
        while _store.add(_key("ended"), 0 if first else 1) < others and first and time.monotonic() < until:
            time.sleep(0.05)


def _failure() -> str | None:
    """What a process that has failed has told; None if none has, or the store has gone with it."""
    with suppress(RuntimeError):
        if _store is not None and _store.check([_key("failed")]):
            return str(_store.get(_key("failed")).decode())
    return None
