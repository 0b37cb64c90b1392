"""How a process of a command starts and ends."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
from functools import cache

ALLOCATIONS = 10_000
"""Objects to make between two collections. Python's own 700 spends an eighth of a short run on collecting."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
SET_UP = ("MALLOC_", "GLIBC_TUNABLES")  # environment variables by which users set malloc up
SPINS = 3_000
"""How often a thread looks for work before it sleeps: a tenth of a millisecond, a hundredth of the default.

On two cores with two other processes, ``make run`` takes 17 seconds with it and 150 without; alone, the
difference is within a tenth, where sleeping at once costs a fifth to a half.
"""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # environment variables by which users set how threads wait
MAPPED = 256 * 2**20
"""Bytes from which a tensor gets memory that goes back to the system when it is freed."""
KEPT = 2**30
"""Bytes of freed memory that are held for the next tensors."""


@cache
def collect_less_garbage() -> None:
    """Look for garbage less often than Python does by default, and not again at exit.

    Importing torch, transformers and a model makes a million objects that stay. Every collection walks over
    some of them, and those at exit over all, so that a short run takes a third longer than it has to.
    """
    gc.set_threshold(ALLOCATIONS)
    atexit.register(_leave_garbage)


def _leave_garbage() -> None:
    """Leave all objects to the end of the process instead of collecting them at exit.

    Not where Triton is imported, as torch's builds for CUDA do: it prints a page of warnings about its own
    functions that are never collected.
    """
    if "triton" not in sys.modules:
        gc.freeze()


def sleep_soon() -> None:
    """Let the threads of GNU's OpenMP sleep soon when they have no work; nothing where the user has set that.

    They look for work for milliseconds by default. Where other processes compute, too, that keeps the thread
    that all others wait for from its core. torch's builds for Linux have this OpenMP, and read it once, when
    they are imported; the processes that a command starts inherit it.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def discard_output() -> None:
    """Discard what is printed from now on, and at exit, to an output that its reader has closed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cache
def reuse_freed_memory() -> None:
    """Let glibc give the memory of freed tensors to the next ones; nothing where the user has set malloc up.

    By default a tensor of more than 32 MiB gets new pages, which the system clears at their first use and
    takes back in the end. On a CPU that is three quarters of the time of multiplying two such tensors. The
    peak of memory rises, so runs with ``runtime.offload`` don't call this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and not any(name.startswith(SET_UP) for name in os.environ):
        mallopt(M_MMAP_THRESHOLD, MAPPED)
        mallopt(M_TRIM_THRESHOLD, KEPT)
