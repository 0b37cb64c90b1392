"""Mutable containers among the arguments of blocks: dicts, lists and caches, by which they hand on things."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from typing import Any

from torch import Tensor

Contents = list[tuple[Any, int]]


def contents(value: Any) -> Contents:
    """What a value holds at any depth, itself included: (object, version), counting the changes of a tensor."""
    found: Contents = []
    _walk(value, found, set())
    return found


def changed(before: Contents, after: Contents) -> bool:
    """Whether something was put in, taken out, replaced or changed in place between two looks at a value."""
    if len(before) != len(after):
        return True
    pairs = zip(before, after, strict=True)
    return any(one is not other or old != new for (one, old), (other, new) in pairs)


def detached(value: Any) -> Any:
    """A value whose containers are copies at every depth: no later change of the originals is seen in it.

    Tensors are the same, not copies.
    """
    return _copied(value, {})


def _walk(value: Any, found: Contents, seen: set[int]) -> None:
    if isinstance(value, Tensor):
        found.append((value, 0 if value.is_inference() else value._version))
        return
    found.append((value, 0))
    if _is_container(value) and id(value) not in seen:
        seen.add(id(value))
        for item in _items(value):
            _walk(item, found, seen)


def _is_container(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple | Set):
        return True
    return hasattr(value, "__dict__") and not callable(value) and not isinstance(value, Tensor)


def _items(container: Any) -> list[Any]:
    """Keys and values of a mapping, items of a list, tuple or set, attributes of another object."""
    if isinstance(container, Mapping):
        return [*container.keys(), *container.values()]
    return list(container) if isinstance(container, list | tuple | Set) else list(vars(container).values())


def _copied(value: Any, known: dict[int, Any]) -> Any:
    if not _is_container(value):
        return value
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, tuple):
        items = [_copied(item, known) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    try:
        made = known[id(value)] = copy.copy(value)
    except TypeError:  # a view of another one, such as a dict's keys
        return value
    if made is value:  # one that can't be changed
        return value
    if isinstance(made, dict):
        for key, item in value.items():
            made[key] = _copied(item, known)
    elif isinstance(made, list):
        made[:] = [_copied(item, known) for item in value]
    for name, item in getattr(value, "__dict__", {}).items():
        made.__dict__[name] = _copied(item, known)
    return made
