"""What a program sees of a tensor's place: ``Tensor.device``, ``Tensor.to`` and their like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from tests.accelerator.state import NAME, note, note_copy, on_device, place, storage
from tests.accelerator.streams import check_seen

_where = Tensor.device.__get__  # type: ignore[attr-defined]
_to, _numpy, _tolist, _clone_storage = Tensor.to, Tensor.numpy, Tensor.tolist, torch.UntypedStorage.clone
_group = torch._C._group_tensors_by_device_and_dtype


def replaced() -> dict[str, Any]:
    """{attribute of ``Tensor``: what it becomes}"""
    device = torch.device(NAME, 0)  # there is none before it is registered
    return {
        "device": property(lambda self: device if on_device(self) else _where(self)),
        "is_cpu": property(lambda self: self.device.type == "cpu"),
        f"is_{NAME}": property(on_device),
        "get_device": lambda self: 0 if on_device(self) else -1,
        "to": moved,
        "cpu": lambda self, memory_format=torch.preserve_format: moved(
            self, "cpu", memory_format=memory_format
        ),
        "type_as": moved,
        "new_tensor": _new_tensor,
        "numpy": _as_array,
        "tolist": _as_list,
        "pin_memory": pinned,
        "record_stream": lambda self, stream: None,
        "is_pinned": lambda self, device=None: getattr(storage(self), "pinned", False),
    }


class _Move(torch.autograd.Function):
    """A copy on the other side; its gradient goes the other way."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, there: bool, options: dict[str, Any]) -> Tensor:
        context.back, context.dtype = on_device(tensor), tensor.dtype
        return _copied(tensor, there, options)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return _copied(gradients[0], context.back, {"dtype": context.dtype}), None, None


def _copied(tensor: Tensor, there: bool, options: dict[str, Any]) -> Tensor:
    note_copy(tensor, there, options.get("non_blocking", False))
    check_seen(tensor, True)
    with _disable_current_modes():
        copy = _to(tensor, copy=True, **options)
    return place(copy, there)


def moved(self: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
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


def _new_tensor(
    self: Tensor, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    return torch.tensor(
        data, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad
    )


def _as_array(self: Tensor, *, force: bool = False) -> Any:
    if force:
        return _numpy(self.detach().cpu())
    if on_device(self):
        raise TypeError(f"can't convert {NAME} device type tensor to numpy. Use Tensor.cpu() first.")
    return _numpy(self)


def _as_list(self: Tensor) -> Any:
    if on_device(self):
        note("wait", "tolist")
    return _tolist(self)


def pinned(self: Tensor, device: Any = None) -> Tensor:
    if on_device(self):
        raise RuntimeError(f"cannot pin a tensor on {NAME}; only dense tensors of the CPU can be pinned")
    copy = self if self.is_pinned() else self.clone()
    storage(copy).pinned = True  # type: ignore[attr-defined]
    return copy


def clone_storage(self: torch.UntypedStorage) -> torch.UntypedStorage:
    """``UntypedStorage.clone``, which ``copy.deepcopy`` goes through."""
    copy = _clone_storage(self)
    copy.on_device = getattr(self, "on_device", False)  # type: ignore[attr-defined]
    return copy


def grouped(tensors: Any, indices: bool = False) -> Any:
    """The groups that optimisers make, by the place that their first tensors say."""
    groups = _group(tensors, indices)
    return {(found[0][0][0].device, dtype): found for (_, dtype), found in groups.items()}


def as_cpu(function: Any) -> Any:
    """A function of autocast that does for the device what it does for the CPU, whose kernels run."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(put, args), **{name: put(value) for name, value in kwargs.items()})

    def put(value: Any) -> Any:
        return "cpu" if isinstance(value, str) and value.startswith(NAME) else value

    return call
