"""What CUDA allows in one operation: which tensors may be on the CPU while others are on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Beside the pointwise operations: these take a scalar from the CPU too.
SCALAR_TOO = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill.Tensor, aten.fill_.Tensor}
# The host waits for their result: it is a Python value, or its shape depends on the values.
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
}
WAITING |= {
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
}

OnDevice = Callable[[Tensor], bool]


class DeviceMixError(RuntimeError):
    """An operation was given tensors of the device and of the CPU."""


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments, those in lists and tuples included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def check(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on_device: OnDevice) -> bool:
    """Whether an operation computes on the device.

    Raises:
        DeviceMixError: CUDA would not allow its tensors together, or the generator is on the CPU.
    """
    inside = [on_device(tensor) for tensor in _strided(args, kwargs)]
    if not any(inside) or operation in COPIES:
        return any(inside)
    if not all(inside):
        _check_mixed(operation, args, kwargs, on_device)
    check_generator(operation, kwargs)
    return True


def check_generator(operation: Any, kwargs: dict[str, Any]) -> None:
    """Refuse a generator of the CPU for an operation on the device.

    Raises:
        DeviceMixError: so it is.
    """
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise DeviceMixError(f"{operation}: a generator of the CPU for a tensor on the device")


def waits(operation: Any, args: tuple[Any, ...]) -> bool:
    """Whether the host has to wait for the result; masks as indices become positions first."""
    if operation in INDEXING:
        return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(args[1]))
    return operation in WAITING


def _check_mixed(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on_device: OnDevice) -> None:
    """Refuse tensors of both places but for indices, and scalars that are read pointwise.

    Raises:
        DeviceMixError: if one of them has to be on the device and is on the CPU.
    """
    if operation in INDEXING:
        _check_indexing(operation, args, on_device)
        return
    tensors = _strided(args, kwargs)
    inside = [on_device(tensor) for tensor in tensors]
    scalars = torch.Tag.pointwise in operation.tags or operation in SCALAR_TOO
    written = [tensor for tensor in tensors_in(_written(operation, args, kwargs)) if not tensor.is_meta]
    for tensor, there in zip(tensors, inside, strict=True):
        if not there and (tensor.dim() > 0 or not scalars or any(tensor is one for one in written)):
            raise DeviceMixError(
                f"{operation}: expected all tensors to be on the same device, and {_shapes(tensors, inside)}"
            )


def _strided(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among arguments that have memory."""
    every = tensors_in((*args, *kwargs.values()))
    return [tensor for tensor in every if tensor.layout == torch.strided and not tensor.is_meta]


def _check_indexing(operation: Any, args: tuple[Any, ...], on_device: OnDevice) -> None:
    """Refuse values on the CPU but for scalars, and a tensor on the CPU; indices may be there."""
    if not on_device(args[0]):
        raise DeviceMixError(f"{operation}: a tensor on the CPU with indices or values on the device")
    values = args[2] if operation is not aten.index.Tensor else None
    if isinstance(values, Tensor) and values.dim() > 0 and not on_device(values):
        raise DeviceMixError(f"{operation}: values on the CPU for a tensor on the device")


def _written(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """The arguments that an operation changes in place."""
    for place, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[place] if place < len(args) else kwargs.get(argument.name)


def _shapes(tensors: list[Tensor], inside: list[bool]) -> str:
    places = ["the device" if there else "the CPU" for there in inside]
    return ", ".join(f"{tuple(one.shape)} is on {where}" for one, where in zip(tensors, places, strict=True))
