"""The cost of a step: wall-clock seconds, peak memory, and whether its result was read from the cache.

If an accelerator is in use, the peak is the most memory that its allocator held; otherwise it is the
process's largest resident set. Linux can reset the peak, so each step gets its own; elsewhere it is the
largest since the process began.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ecoflap.console.host_memory import free_host_memory
from ecoflap.console.progress import begun
from ecoflap.errors import UserError

_PROC = Path("/proc/self")


@contextmanager
def measure(steps: dict[str, dict[str, Any]], step: str) -> Iterator[dict[str, int]]:
    """Measure this context and write its cost to ``steps[step]``, even if it raises; watchers see it begin.

    The cost is ``{"seconds": float, "peak_memory_bytes": int, "cached": bool}``. The body sets ``cached`` in
    the dict that it receives if it reads the step's result from the cache, and may add counts to it. Measures
    can't be nested: an inner one resets the peak of the outer one.

    Args:
        steps: the costs of all steps; changed here.
        step: name of the step.

    Raises:
        UserError: if memory runs out in the body.
    """
    begun(step)
    reset_peak_memory()
    flags: dict[str, int] = {"cached": False}
    start = time.perf_counter()
    try:
        yield flags
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"memory ran out in step {step} ({first}); use a smaller batch_size or score.batch_size,"
            " runtime.offload=cpu or disk, model.dtype=bfloat16, or fewer samples; the table of memory at a"
            " time says which part is largest"
        ) from error
    finally:
        seconds = time.perf_counter() - start
        steps[step] = {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes(), **flags}


def reset_peak_memory() -> None:
    """Start a new peak, on the host where Linux allows it and on the accelerator if there is one."""
    # "5" resets VmHWM to the current resident set; see proc(5). Sandboxes may forbid it.
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")
    if (allocator := _accelerator()) is not None:
        allocator.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """The peak since the last reset: the accelerator's if one was used, otherwise the host's."""
    allocator = _accelerator()
    on_accelerator = 0 if allocator is None else int(allocator.max_memory_allocated())
    return on_accelerator or _host_peak_bytes()


def _host_peak_bytes() -> int:
    """The largest resident set of this process, in bytes."""
    try:
        line = next(line for line in (_PROC / "status").read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource
        import sys

        # KiB everywhere but on macOS, which counts bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; only accelerators have an exception class for it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


@contextmanager
def errors_suppressed() -> Iterator[None]:
    """Suppress whatever a model's code raises, except out-of-memory errors."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise


def free_memory(device: Any) -> int:
    """Bytes free on a ``torch.device``, including those that PyTorch's allocator reserves but doesn't use.

    For a device that doesn't report its memory, the host's, see ``free_host_memory``.
    """
    import torch

    if device.type == "cpu" or not hasattr(module := torch.get_device_module(device), "mem_get_info"):
        return free_host_memory()
    unused = 0
    if hasattr(module, "memory_reserved"):
        unused = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + unused)


def _accelerator() -> Any | None:
    """The torch module of the accelerator's allocator (``torch.cuda``, ``torch.xpu``, ...).

    None if there is no accelerator in use that reports a peak.
    """
    import torch

    if not torch.accelerator.is_available():
        return None
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    # Before its first use a device has no statistics, and resetting them is an error.
    in_use = getattr(module, "is_initialized", lambda: True)()
    return module if in_use and hasattr(module, "reset_peak_memory_stats") else None
