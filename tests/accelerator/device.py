"""A pretend accelerator, ``npy``: tensors of the CPU that say they are on a device, and operations that refuse what CUDA would.

A tensor on the device is an ordinary tensor of the CPU whose storage carries a mark. So views, ``.data =``, parameters and autograd work as ever,
the kernels are the CPU's, and results are the same to the last bit. What a program sees of the place is replaced: ``Tensor.device``, ``.to``,
``.numpy`` and their like. Two modes follow what is computed: ``Operations`` sees every kernel with its tensors, checks them and marks the
results; ``Calls`` sees which function of PyTorch was called, because some make tensors of their own inside, on the device of their arguments.

``install`` changes PyTorch for the whole process, and follows the thread that calls it. There are no streams, everything is done at once; and no
generators, because the device would draw other numbers than the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.accelerator.rules import check, check_generator, tensors_in, waits

NAME = "npy"
DEVICE = torch.device("cpu")  # until it is installed

FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)

_where = Tensor.device.__get__  # type: ignore[attr-defined]
_group = torch._C._group_tensors_by_device_and_dtype
_to, _numpy, _tolist, _clone_storage = Tensor.to, Tensor.numpy, Tensor.tolist, torch.UntypedStorage.clone


@dataclass(frozen=True)
class Event:
    """What happened on the device, in the program's order.

    Attributes:
        kind: "copy" to or from the device, "compute", "wait" (the host needs a value), or "backward".
        what: the operation, the shape of what is copied, or the begin or the end of a backward pass.
    """

    kind: str
    what: str


class State:
    """What the device is asked to do besides.

    Attributes:
        events: where events are written; null for nowhere.
        fp64: whether it has double precision; Apple's has none.
    """

    events: list[Event] | None = None
    fp64 = True


def is_available() -> bool:
    """Whether the installed PyTorch can have such a device."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def on_device(tensor: Tensor) -> bool:
    """Whether a tensor's storage carries the mark."""
    return tensor.layout == torch.strided and getattr(_storage(tensor), "on_device", False)


@contextmanager
def recording() -> Iterator[list[Event]]:
    """The events of the body."""
    State.events, before = [], State.events
    try:
        yield State.events
    finally:
        State.events = before


@contextmanager
def without_fp64() -> Iterator[None]:
    """Refuse double precision on the device."""
    State.fp64 = False
    try:
        yield
    finally:
        State.fp64 = True


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def _place(tensor: Tensor, there: bool = True) -> Tensor:
    """Put the mark on a tensor's storage, or take it off."""
    if there and not State.fp64 and tensor.dtype == torch.float64:
        raise TypeError(f"{NAME} has no float64")
    _storage(tensor).on_device = there  # type: ignore[attr-defined]
    return tensor


def _note(kind: str, what: str) -> None:
    if State.events is not None:
        State.events.append(Event(kind, what))


class Operations(TorchDispatchMode):
    """Check every kernel that runs, and mark what it makes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        there = check(func, args, kwargs, on_device)
        if (asked := kwargs.get("device")) is not None:
            if asked.type == NAME:
                kwargs["device"], there = torch.device("cpu"), True
                check_generator(func, kwargs)
            elif asked.type == "meta" or Calls.explicit:
                there = False
            else:  # inside a function, and nobody said so
                there = there or Calls.inside
        if there:
            _note("wait" if waits(func, args) else "compute", str(func))
        result = func(*args, **kwargs)
        if there and not (func is torch.ops.aten.copy_.default and not on_device(args[0])):
            for tensor in tensors_in(result if isinstance(result, (list, tuple)) else (result,)):
                if tensor.layout == torch.strided and not tensor.is_meta:
                    _place(tensor)
        return result


class Calls(TorchFunctionMode):
    """Which function was called: whether with tensors of the device, and whether it was told where to make new ones."""

    inside = False
    explicit = False

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        before = Calls.inside, Calls.explicit
        Calls.inside = any(map(on_device, tensors_in((*args, *kwargs.values()))))
        Calls.explicit = kwargs.get("device") is not None
        try:
            if func in FROM_DATA and kwargs.get("device") is not None:
                made = func(*args, **{name: value for name, value in kwargs.items() if name not in ("device", "requires_grad")})
                return _moved(made, kwargs["device"]).requires_grad_(kwargs.get("requires_grad", False))
            return func(*args, **kwargs)
        finally:
            Calls.inside, Calls.explicit = before


class _Move(torch.autograd.Function):
    """A copy on the other side; its gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, there: bool, options: dict[str, Any]) -> Tensor:
        ctx.back, ctx.dtype = on_device(tensor), tensor.dtype
        return _copied(tensor, there, options)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _copied(gradients[0], ctx.back, {"dtype": ctx.dtype}), None, None


def _copied(tensor: Tensor, there: bool, options: dict[str, Any]) -> Tensor:
    _note("copy", f"{tuple(tensor.shape)} to {NAME if there else 'cpu'}")
    if not there and not options.get("non_blocking"):
        _note("wait", "copy")
    with _disable_current_modes():
        copy = _to(tensor, copy=True, **options)
    return _place(copy, there)


def _moved(self: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    """``Tensor.to``."""
    other = args[0] if args and isinstance(args[0], Tensor) else kwargs.pop("other", None)
    if other is not None:
        args, kwargs = (), {"device": other.device, "dtype": other.dtype, **kwargs}
    device, dtype, non_blocking, form = torch._C._nn._parse_to(*args, **kwargs)
    options: dict[str, Any] = {"dtype": dtype, "non_blocking": non_blocking, "memory_format": form}
    options = {name: value for name, value in options.items() if value is not None}
    there = on_device(self)
    if device is not None and (self.is_meta or device.type not in (NAME, "cpu")):
        return _to(self, "cpu" if device.type == NAME else device, copy=copy, **options)
    if device is None or (device.type == NAME) == there:
        return _to(self, copy=copy, **options)
    return _Move.apply(self, not there, options)  # type: ignore[no-any-return]


def _as_array(self: Tensor, *, force: bool = False) -> Any:
    """``Tensor.numpy``."""
    if force:
        return _numpy(self.detach().cpu())
    if on_device(self):
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
    return _numpy(self)


def _as_list(self: Tensor) -> Any:
    """``Tensor.tolist``."""
    if on_device(self):
        _note("wait", "tolist")
    return _tolist(self)


def _pinned(self: Tensor, device: Any = None) -> Tensor:
    """``Tensor.pin_memory``."""
    if on_device(self):
        raise RuntimeError(f"cannot pin a tensor on {DEVICE}; only dense tensors of the CPU can be pinned")
    copy = self if self.is_pinned() else self.clone()
    _storage(copy).pinned = True  # type: ignore[attr-defined]
    return copy


def _copied_storage(self: torch.UntypedStorage) -> torch.UntypedStorage:
    """``UntypedStorage.clone``, which ``copy.deepcopy`` goes through."""
    copy = _clone_storage(self)
    copy.on_device = getattr(self, "on_device", False)  # type: ignore[attr-defined]
    return copy


class Backend(backend_registration._DummyBackendModule):
    """``torch.npy``: what PyTorch asks a device's module for."""

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


def _backward(engine: Any) -> Any:
    """The backward pass, whose hooks and recomputed forward passes are followed as well."""

    def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        before = Calls.inside, Calls.explicit
        Calls.inside, Calls.explicit = any(map(on_device, tensors_in(outputs))), False
        _note("backward", "begin")
        try:
            with Calls():
                return engine(outputs, *args, **kwargs)
        finally:
            _note("backward", "end")
            Calls.inside, Calls.explicit = before

    return run


def _as_cpu(function: Any) -> Any:
    """A function of autocast that does for the device what it does for the CPU, whose kernels run."""

    def call(*args: Any, **kwargs: Any) -> Any:
        put = lambda value: "cpu" if isinstance(value, str) and value.startswith(NAME) else value  # noqa: E731
        return function(*map(put, args), **{name: put(value) for name, value in kwargs.items()})

    return call


def _grouped(tensors: Any, indices: bool = False) -> Any:
    """The groups that optimisers make, by the place that their first tensors say."""
    groups = _group(tensors, indices)
    return {(found[0][0][0].device, dtype): found for (_, dtype), found in groups.items()}


def install() -> torch.device:
    """Register the device with this process, once."""
    global DEVICE
    if DEVICE.type == NAME:
        return DEVICE
    from torch.utils._device import _device_constructors

    _device_constructors()
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    DEVICE = torch.device(NAME, 0)
    changed: dict[str, Any] = {
        "device": property(lambda self: DEVICE if on_device(self) else _where(self)),
        "is_cpu": property(lambda self: self.device.type == "cpu"),
        f"is_{NAME}": property(on_device),
        "get_device": lambda self: 0 if on_device(self) else -1,
        "to": _moved,
        "cpu": lambda self, memory_format=torch.preserve_format: _moved(self, "cpu", memory_format=memory_format),
        "type_as": lambda self, other: _moved(self, other),
        "numpy": _as_array,
        "tolist": _as_list,
        "pin_memory": _pinned,
        "is_pinned": lambda self, device=None: getattr(_storage(self), "pinned", False),
    }
    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
        setattr(torch, name, _as_cpu(getattr(torch, name)))
    torch.autocast.__init__ = _as_cpu(torch.autocast.__init__)  # type: ignore[method-assign]
    for name, value in changed.items():
        setattr(Tensor, name, value)
    torch.UntypedStorage.clone = _copied_storage  # type: ignore[method-assign]
    torch.autograd._engine_run_backward = _backward(torch.autograd._engine_run_backward)  # type: ignore[attr-defined]
    torch._C._group_tensors_by_device_and_dtype = _grouped
    torch.accelerator.synchronize = lambda device=None: _note("wait", "synchronize")
    Operations().__enter__()
    Calls().__enter__()
    return DEVICE
