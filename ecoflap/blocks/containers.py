"""Containers by which blocks share state: dicts, lists, tuples, sets and objects such as caches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

Contents = list[tuple[Any, int]]


def items_of(value: Any) -> dict[Any, Any] | None:
    """The contents of a container by key, index or attribute; None for other values, such as modules."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if isinstance(value, Set):
        return dict.fromkeys(value)
    if isinstance(value, Tensor) or callable(value):
        return None
    return getattr(value, "__dict__", None)


def contents(value: Any) -> Contents:
    """All values inside a value at any depth, itself included, as (object, version).

    The version counts the in-place changes of a tensor; it is 0 for everything else.
    """
    found: Contents = []
    _walk(value, found, set())
    return found


def changed(before: Contents, after: Contents) -> bool:
    """Whether anything was added, removed, replaced or changed in place between two calls of ``contents``."""
    if len(before) != len(after):
        return True
    pairs = zip(before, after, strict=True)
    return any(one is not other or old != new for (one, old), (other, new) in pairs)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors inside a value at any depth, itself included."""
    return [item for item, _ in contents(value) if isinstance(item, Tensor)]


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for tensors that PyTorch does not count for."""
    return 0 if tensor.is_inference() else tensor._version


def snapshot(value: Any, of_tensor: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """Copy all containers inside a value, so that later changes of the originals don't affect it.

    Args:
        value: any value.
        of_tensor: applied to each tensor; by default the copy holds the same tensors.
    """
    return _copied(value, of_tensor, {})


def refill(target: Any, source: Any) -> None:
    """Replace the contents of a dict, list or object by those of another one of its type.

    Args:
        target: the container to change.
        source: the container to copy from.
    """
    if isinstance(target, list):
        target[:] = source
        return
    inside: Any = target if isinstance(target, Mapping) else vars(target)
    wanted = source if isinstance(target, Mapping) else vars(source)
    for name in [name for name in inside if name not in wanted]:
        del inside[name]
    for name, item in wanted.items():  # transformers' outputs are dicts without update()
        inside[name] = item


def equal(one: Any, other: Any, same: Callable[[Tensor, Tensor], bool] = torch.equal) -> bool:
    """Whether two values hold the same at every depth; modules and functions are compared by type alone.

    Args:
        one: any value.
        other: the value to compare it with.
        same: compares two tensors of one dtype and shape.
    """
    return _equal(one, other, same, set())


def _walk(value: Any, found: Contents, seen: set[int]) -> None:
    if isinstance(value, Tensor):
        found.append((value, version_of(value)))
        return
    found.append((value, 0))
    items = items_of(value)
    if items is None or id(value) in seen:
        return
    seen.add(id(value))
    for item in [*items, *items.values()] if isinstance(value, Mapping | Set) else items.values():
        _walk(item, found, seen)


def _copied(value: Any, of_tensor: Callable[[Tensor], Tensor], known: dict[int, Any]) -> Any:
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, Tensor):
        known[id(value)] = of_tensor(value)
        return known[id(value)]
    items = items_of(value)
    if items is None:
        return value
    if isinstance(value, tuple):
        inside = [_copied(item, of_tensor, known) for item in value]
        return type(value)(*inside) if hasattr(value, "_fields") else type(value)(inside)
    try:
        made = known[id(value)] = copy.copy(value)
    except TypeError:  # a view, such as a dict's keys
        return value
    if made is value:  # immutable
        return value
    if isinstance(made, dict | list):
        for key, item in items.items():
            made[key] = _copied(item, of_tensor, known)
    for name, item in getattr(value, "__dict__", {}).items():
        made.__dict__[name] = _copied(item, of_tensor, known)
    return made


def _equal(one: Any, other: Any, same: Callable[[Tensor, Tensor], bool], seen: set[tuple[int, int]]) -> bool:
    if isinstance(one, Tensor):
        alike = isinstance(other, Tensor) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and same(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, int | float | str):
        return bool(one == other)
    items, others = items_of(one), items_of(other)
    if items is None or others is None or (id(one), id(other)) in seen:
        return True
    seen.add((id(one), id(other)))
    if items.keys() != others.keys():
        return False
    return all(_equal(item, others[key], same, seen) for key, item in items.items())
