"""What a command changes of Python's garbage collector."""

from __future__ import annotations

import subprocess
import sys

from ecoflap.console.startup import ALLOCATIONS

CODE = """
import atexit, gc
from ecoflap.cli import command
own = gc.get_threshold()[0]
atexit.register(lambda: print(own, gc.get_threshold()[0], gc.get_freeze_count()))
registered = atexit._ncallbacks()
for _ in range({commands}):
    command.main(["--version"])
print(atexit._ncallbacks() - registered)
"""


def ended(commands: int) -> tuple[int, ...]:
    """Of a process that ran some commands: how many functions they registered to run at exit; the thresholds
    at first and last; and the objects that were frozen when it ended.
    """
    code = CODE.format(commands=commands)
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
