"""The processes of a run, as torchrun starts them: on one node, or on several of a Slurm job.

All of them run the same steps. Where samples, solves or predictions are shared out, each process has its part
of the work, and a collective operation gives all of them the whole result; everything else is done by each.
Only the first process writes the run's files; the others get temporary folders.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from ecoflap.errors import UserError

log = logging.getLogger(__name__)

PATIENCE = timedelta(days=1)
"""How long a process waits for the others: one of them may wait for what another run computes."""
LAUNCHED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
FAILED = "ecoflap/failed"

_store: distributed.Store | None = None  # of what processes tell each other beside collective operations
_joined = False


def rank() -> int:
    """The number of this process in its run, from 0."""
    return distributed.get_rank() if _joined else 0


def size() -> int:
    """The number of processes of the run."""
    return distributed.get_world_size() if _joined else 1


def is_first() -> bool:
    """Whether this process is the only one of its run or the first."""
    return rank() == 0


@contextmanager
def joined(folder: Path, device: str) -> Iterator[Path]:
    """Join the other processes of the run, if torchrun or a similar launcher has started several.

    Args:
        folder: the folder of the run.
        device: the device in the run's config.

    Yields:
        The folder of the run in the first process, and a folder inside it in each other one.

    Raises:
        UserError: if another process has failed, with its error.
    """
    global _joined
    if os.environ.get("WORLD_SIZE", "1") == "1" or not os.environ.keys() >= LAUNCHED:
        yield folder
        return
    _initialise(device)
    _joined = True
    try:
        shared = [str(folder)]
        distributed.broadcast_object_list(shared, src=0)
        own = Path(shared[0]) if is_first() else Path(shared[0]) / "processes" / os.environ["RANK"]
        own.mkdir(parents=True, exist_ok=True)
        if is_first():
            yield own
        else:
            logging.getLogger().setLevel(logging.ERROR)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield own
        distributed.barrier()
    except BaseException as error:
        _tell(error)
        raise
    finally:
        if is_first():
            shutil.rmtree(folder / "processes", ignore_errors=True)
        _joined = False


def shared_folder(folder: Path) -> Path:
    """The folder of the run, from the folder of any process."""
    return folder if is_first() else folder.parents[1]


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
    global _store
    accelerated = device != "cpu" and torch.accelerator.is_available()
    if accelerated:
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    if distributed.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if accelerated and torch.cuda.is_available() else "gloo"
    _store, number, count = next(rendezvous("env://", timeout=PATIENCE))
    distributed.init_process_group(
        backend,
        store=distributed.PrefixStore("ecoflap", _store),
        rank=number,
        world_size=count,
        timeout=PATIENCE,
    )


def _tell(error: BaseException) -> None:
    """Tell the other processes why this one ends, unless it ends because of them."""
    if _store is None or _failure() is not None:
        return
    said = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    try:
        _store.set(FAILED, f"process {rank() + 1} of {size()} has failed: {said}")
    except RuntimeError:
        log.debug("the others can't be told: the process that holds their store has ended")


def _failure() -> str | None:
    """What a process that has failed has told; None if none has, or the store has gone with it."""
    try:
        if _store is not None and _store.check([FAILED]):
            return str(_store.get(FAILED).decode())
    except RuntimeError:
        pass
    return None
