"""What the rows are measured with: interleaved medians, counts of tensor operations, and the peak memory of a
process of its own.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what is measured.
        against: what it is measured against.
        unit: of both figures.
        plain: the figure of what it is measured against.
        ours: our figure.
        ratio: how many times better ours is, or the share that it needs; see ``target``.
        target: what the ratio is held against: ``(">=", 3.0)`` or ``("<=", 0.35)``; none where a row only
            informs.
        agreement: how far the two results agree.
        details: everything else that was measured.
    """

    name: str
    against: str
    unit: str
    plain: float
    ours: float
    ratio: float
    target: tuple[str, float] | None
    agreement: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met."""
        if self.target is None:
            return None
        sign, value = self.target
        return self.ratio >= value if sign == ">=" else self.ratio <= value


def write_between(path: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Put lines between two marks of a page; what people wrote around them stays."""
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    text = "\n".join([begin, "", *lines, "", end])
    path.write_text(before + text + rest.partition(end)[2], encoding="utf-8")


def clock() -> float:
    """Seconds: the accelerator's work waited for where there is one; on the CPU those of this process, which
    other work on the machine can't take.
    """
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
        return time.perf_counter()
    return time.process_time()


def interleaved(
    sides: Mapping[str, Callable[[], Any]], runs: int, read: Callable[[], float] = clock
) -> dict[str, list[float]]:
    """Seconds of each run of each side by the clock that is read. The sides take turns, so that a busy moment
    of the machine hits all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            gc.collect()
            started = read()
            side()
            seconds[name].append(read() - started)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each side."""
    return {name: median(values) for name, values in seconds.items()}


class _Counter(TorchDispatchMode):
    """Counts the operations that compute something: views and bookkeeping cost no launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func.namespace == "prim")
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], Any]) -> int:
    """How many tensor operations a function dispatches, views not counted."""
    with _Counter() as counter:
        run()
    return counter.count


def in_child(function: str, variables: Mapping[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
    """Call ``module:function`` in a fresh process with variables of the environment; its JSON result, with
    ``peak_bytes``: that process's maximum resident set. Child processes compute on the CPU, whose memory and
    seconds they measure.
    """
    return _finished(_start(function, arguments, variables), function, arguments)


def in_children(count: int, function: str, **arguments: Any) -> list[dict[str, Any]]:
    """Call ``module:function`` in fresh processes that can join each other; the JSON result of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for rank in map(str, range(count)):
        variables = {**address, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count)}
        children.append(_start(function, arguments, variables))
    return [_finished(child, function, arguments) for child in children]


def _start(
    function: str, arguments: Mapping[str, Any], variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.child", function, json.dumps(arguments)]
    environment = {
        **os.environ,
        **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), ""),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **(variables or {}),
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def _finished(child: subprocess.Popen[str], function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a child process has printed last."""
    output, errors = child.communicate()
    if child.returncode:
        raise RuntimeError(f"{function}({arguments}) failed in its child process:\n{errors[-2000:]}")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result
