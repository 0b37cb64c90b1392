"""The hardware that a result was computed on: seconds and memory can be compared only on the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")


def hardware(device: Any, processes: int) -> dict[str, Any]:
    """The ``hardware`` field of a result.

    Args:
        device: the ``torch.device`` that the model runs on.
        processes: how many processes share the run.

    Returns:
        ``device`` (its type), ``name`` (see ``name_of``), ``threads`` (of torch on the host), ``processes``.
    """
    import torch

    threads = torch.get_num_threads()
    return {"device": device.type, "name": name_of(device), "threads": threads, "processes": processes}


def name_of(device: Any) -> str:
    """The name of an accelerator, such as NVIDIA H100, or of the processor; what is unknown, by its type."""
    import torch

    if device.type == "cpu":
        return _processor()
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else str(device.type)


def in_words(known: Mapping[str, Any] | None) -> str:
    """``hardware`` on one line; empty for records from before the field."""
    if known is None:
        return ""
    words = [known["name"]]
    if known["device"] == "cpu" and known["threads"] > 1:
        words.append(f"{known['threads']} threads")
    if known["processes"] > 1:
        words.append(f"{known['processes']} processes")
    return ", ".join(words)


def _processor() -> str:
    with suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "cpu"
