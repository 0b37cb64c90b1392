"""Check that a model calls its layers: only in a call of a module are its inputs seen and its output nudged.

Mamba multiplies by the weight of ``dt_proj`` without calling it; Zamba2's shared blocks are modules with the
same weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel, quiet_forward


class LayerCalls(TorchFunctionMode):
    """Watches a forward pass.

    Attributes:
        called: names of the layers whose module was called.
        read_elsewhere: names of the layers whose weight an operation read outside such a call.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.called: set[str] = set()
        self.read_elsewhere: set[str] = set()
        self._layers = layers
        self._by_weight = {id(layer.weight): layer.name for layer in layers}
        self._inside: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note whose weights it reads."""
        output = func(*args, **(kwargs or {}))
        if any(isinstance(value, Tensor) for value in _flat(output)):  # not a look at a dtype or a shape
            for value in _flat((args, kwargs or {})):
                name = self._by_weight.get(id(value))
                if name is not None and name not in self._inside:
                    self.read_elsewhere.add(name)
        return output

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what happens meanwhile."""
        handles = []
        for layer in self._layers:
            enter = partial(self._enter, layer.name)
            handles.append(layer.module.register_forward_pre_hook(enter))
            handles.append(layer.module.register_forward_hook(self._leave))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, *_: Any) -> None:
        self.called.add(name)
        self._inside.append(name)

    def _leave(self, *_: Any) -> None:
        self._inside.pop()


@torch.no_grad()
def require_calls(model: PrunableModel, batches: Sequence[Batch], every_layer: bool = False) -> None:
    """Refuse layers of whose inputs nothing, or not everything, would be known.

    Args:
        model: its layers are to be measured by their inputs or nudged.
        batches: of the calibration set. Two samples suffice where they reach every layer; experts that see
            few samples may need more.
        every_layer: refuse layers that no sample reaches, too.

    Raises:
        UserError: a weight is used without calling its module, or no sample reaches a layer that is to be.
    """
    calls = LayerCalls(model.layers)
    names = [layer.name for layer in model.layers]
    small = [{name: tensor[:2] for name, tensor in batch.items()} for batch in batches[:1]]
    with quiet_forward(model.module):
        for batch in chain(small, batches if every_layer else ()):
            with calls.watching():
                model.loss(batch)
            if calls.read_elsewhere:
                raise _used_without_call(calls.read_elsewhere, names)
            if len(calls.called) == len(names):
                return
    if every_layer:
        raise _never_reached(model, set(names) - calls.called)


def _used_without_call(used: set[str], names: Sequence[str]) -> UserError:
    """The error of layers whose weights are read by others than their own module."""
    return UserError(
        f"the model uses the weights of {some(used, names)} outside the call of their module, "
        f"or shares them between modules, so what they read is not known; {advice(used, names)}"
    )


def _never_reached(model: PrunableModel, missed: set[str]) -> UserError:
    """The error of layers that no sample reaches."""
    names = [layer.name for layer in model.layers]
    for tower in model.towers:
        if tower.layers and all(layer.name in missed for layer in tower.layers):
            where = f"tower {tower.name} ({tower.path})"
            return UserError(f"the calibration data never reach {where}; leave it out of towers")
    what = some(missed, names)
    return UserError(
        f"the calibration data never reach {what}, so what they read is not known; {advice(missed, names)}"
    )


def advice(layers: set[str], names: Sequence[str]) -> str:
    """What to do about some of the layers with these names."""
    return f"leave them dense, add skip_layers=[{','.join(patterns(layers, names))}]"


def patterns(wanted: Iterable[str], names: Iterable[str]) -> list[str]:
    """A few short patterns for ``skip_layers`` that match some layers and no others: parts of their names."""
    left = sorted(wanted)
    others = set(names) - set(left)
    found: list[str] = []
    while left:
        parts = left[0].split(".")
        # None that begins with a digit: a command line takes 1.0 for a number.
        starts = [place for place, part in enumerate(parts) if not part.isdigit()]
        runs = {".".join(parts[start:end]) for start in starts for end in range(start + 1, len(parts) + 1)}
        fitting = [run for run in runs if not _matched(run, others)] or [f"^{left[0]}$"]
        best = max(fitting, key=lambda run: (len(_matched(run, left)), -len(run), run))
        found.append(best)
        left = [name for name in left if not re.search(best, name)]
    return found


def _matched(pattern: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if re.search(pattern, name)]


def some(chosen: set[str], names: Sequence[str]) -> str:
    """How many layers, and the first of them."""
    first = next(name for name in names if name in chosen)
    return f"{first} and {len(chosen) - 1} more layers" if len(chosen) > 1 else first


def _flat(value: Any) -> Iterator[Any]:
    """The values in nested lists, tuples and dicts."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value
