"""A pretend accelerator, ``npy``: tensors of the CPU that say they are on a device, under CUDA's rules.

A tensor on the device is an ordinary tensor of the CPU whose storage carries a mark (``state``). So views,
``.data =``, parameters and autograd work as ever, the kernels are the CPU's, and results are the same to the
last bit. What a program sees of a tensor's place is replaced (``methods``); two modes follow what is computed
(``modes``), and refuse what CUDA would (``rules``).

``install`` changes PyTorch for the whole process, and follows the thread that calls it. Everything is done at
once, in ``streams`` too; there are no generators, as a device would draw other numbers than the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

from tests.accelerator import methods, streams
from tests.accelerator.modes import Calls, Operations, followed
from tests.accelerator.state import NAME, note

OF_AUTOCAST = ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype")


class Backend:
    """``torch.npy``: what PyTorch asks a device's module for."""

    is_initialized = is_available = lambda self: True
    _is_in_bad_fork = lambda self: False
    current_device = lambda self: 0
    device_count = lambda self: 1
    Stream = streams.Stream
    current_stream = staticmethod(streams.current_stream)
    stream = staticmethod(streams.into)

    def manual_seed_all(self, seed: int) -> None: ...

    def manual_seed(self, seed: int) -> None: ...

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def empty_cache(self) -> None: ...

    @contextmanager
    def device(self, index: Any) -> Iterator[None]:
        yield


def is_available() -> bool:
    """Whether the installed PyTorch can have a device that is written in Python."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def install() -> None:
    """Register the device with this process."""
    from torch.utils._device import _device_constructors

    _device_constructors()  # remembers the functions that make tensors, as they were
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    for name, value in methods.replaced().items():
        setattr(Tensor, name, value)
    torch.UntypedStorage.clone = methods.clone_storage  # type: ignore[method-assign]
    for name in OF_AUTOCAST:
        setattr(torch, name, methods.as_cpu(getattr(torch, name)))
    torch.autocast.__init__ = methods.as_cpu(torch.autocast.__init__)  # type: ignore[method-assign]
    torch.autograd._engine_run_backward = followed(torch.autograd._engine_run_backward)  # type: ignore[attr-defined]
    torch._C._group_tensors_by_device_and_dtype = methods.grouped
    torch.accelerator.synchronize = lambda device=None: note("wait", "synchronize")
    torch.accelerator.empty_cache = lambda: None  # accelerate calls it, and PyTorch asserts an allocator
    Operations().__enter__()
    Calls().__enter__()
