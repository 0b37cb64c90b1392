"""The device and dtype of a model's weights, and whether they fit into memory."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from ecoflap.console.telemetry import free_memory
from ecoflap.errors import UserError, require_choice
from ecoflap.models.loading import options

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in options.DTYPES}
NAMES = ("auto", "cpu", "cuda", "mps", "xpu")
"""Devices that a misspelt one may stand for."""


def resolve_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        UserError: if there is no such device.
    """
    # torch 2.6 for CUDA raises an error where there is none.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        kind = name.lower().partition(":")[0]
        meant = ["cuda"] if kind == "gpu" else get_close_matches(kind, NAMES, 1, 0.7)
        question = f"did you mean {meant[0]}? " if meant else ""
        raise UserError(f"device={name} is not a device; {question}use auto, cpu, cuda or cuda:N") from None
    try:
        if device.type == "meta":
            raise RuntimeError("it holds no weights")
        torch.empty(0, device=device)
        if device.index is not None and accelerator is not None and device.type == accelerator.type:
            torch.accelerator.set_device_index(device.index)  # whose memory is reported, for example
        return device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name} is not usable here ({str(error).splitlines()[0]}); device=auto or device=cpu is"
        ) from None


def resolve_dtype(name: str) -> torch.dtype | None:
    """The dtype to load weights in; None for ``auto``, which is the checkpoint's.

    Raises:
        UserError: if there is no such dtype.
    """
    require_choice("model.dtype", name, options.ANY_DTYPE)
    return DTYPES.get(name)


def place(module: nn.Module, dtype: str, device: torch.device) -> Any:
    """Move a small module to a device and a dtype, which is fp32 for ``auto``.

    A module that is only inspected stays on the meta device.

    Raises:
        UserError: if there is no such dtype.
    """
    module = module.to(resolve_dtype(dtype) or torch.float32)
    return module if device.type == "meta" else module.to(device)


def check_fits(module: nn.Module, dtype: torch.dtype | None, device: torch.device) -> None:
    """Compare the size of a module's weights with free memory before anything is read.

    Args:
        module: the module; it needs no weights.
        dtype: of its weights; None for fp32.
        device: the device that will hold them.

    Raises:
        UserError: if the weights alone don't fit.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    width = (dtype or torch.float32).itemsize
    needed, free = parameters * width, free_memory(device)
    if needed > free:
        raise UserError(
            f"the weights need {needed / 2**30:.1f} GiB ({parameters:,} parameters of {width} bytes) and"
            f" {device} has {free / 2**30:.1f} GiB free; use"
            f" runtime.offload={'disk' if device.type == 'cpu' else 'cpu'}, which holds a few blocks at a"
            " time, model.dtype=bfloat16, another device, or a smaller model"
        )
