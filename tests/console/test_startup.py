"""What a command changes of Python's garbage collector, of the C library's memory and of OpenMP's threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ecoflap.console.startup import ALLOCATIONS, SET_UP, SPINS, WAITING

pytestmark = pytest.mark.long

CODE = """
import atexit, gc, sys, types
from ecoflap.cli import command
own = gc.get_threshold()[0]
atexit.register(lambda: print(own, gc.get_threshold()[0], gc.get_freeze_count()))
registered = atexit._ncallbacks()
for _ in range({commands}):
    command.main(["--version"])
for name in {imported}:
    sys.modules[name] = types.ModuleType(name)
print(atexit._ncallbacks() - registered)
"""


def ended(commands: int, *imported: str) -> tuple[int, ...]:
    """Of a process that ran some commands and imported some modules: how many functions they registered to
    run at exit; the thresholds at first and last; and the objects that were frozen when it ended.
    """
    code = CODE.format(commands=commands, imported=imported)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return tuple(map(int, " ".join(done.stdout.splitlines()[commands:]).split()))


def test_a_command_collects_less_garbage_and_none_at_exit() -> None:
    """However many commands a process runs; importing the package changes nothing."""
    _, own, unchanged, frozen = ended(0)
    assert own == unchanged < ALLOCATIONS
    assert frozen == 0
    registered, _, threshold, frozen = ended(2)
    assert (registered, threshold) == (1, ALLOCATIONS)
    assert frozen > 0


def test_what_triton_made_is_collected_at_exit() -> None:
    """It warns of each of its functions that is not."""
    assert ended(1, "triton")[-1] == 0


FAULTS = """
import resource, torch
from ecoflap.console.startup import reuse_freed_memory
if {reuse}:
    reuse_freed_memory()
torch.zeros(25_000_000).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.empty(25_000_000).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(reuse: bool, **environment: str) -> int:
    """How many pages a process gets from the system for four tensors of 100 MB, one after the other."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(SET_UP)} | environment
    command = [sys.executable, "-c", FAULTS.format(reuse=reuse)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=given).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_large_tensors_get_the_memory_of_freed_ones() -> None:
    pages = faults(reuse=False)
    assert faults(reuse=True) < pages / 10
    assert faults(reuse=True, MALLOC_ARENA_MAX="2") > pages / 2, "the user has set malloc up"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, str(SPINS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_threads_sleep_soon(given: dict[str, str], spins: str) -> None:
    """As OpenMP itself says when torch is imported."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    code = "from ecoflap.cli import command; command.main(['--version']); import torch"
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"} | given,
    ).stderr
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch has another OpenMP here")
    assert f"GOMP_SPINCOUNT = '{spins}'" in said
