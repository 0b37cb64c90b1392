"""Check that a model calls its layers: hooks on their modules see the inputs and change the outputs.

Mamba multiplies by the weight of ``dt_proj`` without calling it; Zamba2's shared blocks are modules that
share weights. Of experts that share a parameter, some may see no token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ecoflap.data.batch import Batch, first_samples
from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layer_names import first_and_count, skip_layers_advice
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel


class LayerCalls(TorchFunctionMode):
    """Records which layers a forward pass calls, and which weights it reads otherwise.

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
        """Run an operation, and record whose weights it reads."""
        output = func(*args, **(kwargs or {}))
        if any(isinstance(value, Tensor) for value in _flat(output)):  # not a query of a dtype or a shape
            for value in _flat((args, kwargs or {})):
                name = self._by_weight.get(id(value))
                if name is not None and name not in self._inside:
                    self.read_elsewhere.add(name)
        return output

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward pass that runs in this context."""
        entering = (
            layer.module.register_forward_pre_hook(partial(self._enter, layer.name)) for layer in self._layers
        )
        leaving = (layer.module.register_forward_hook(self._leave) for layer in self._layers)
        with hooks(entering), hooks(leaving), self:
            yield

    def _enter(self, name: str, *_: Any) -> None:
        self.called.add(name)
        self._inside.append(name)

    def _leave(self, *_: Any) -> None:
        self._inside.pop()


@torch.no_grad()
def require_calls(model: PrunableModel, batches: Sequence[Batch], every_layer: bool = False) -> None:
    """Refuse a model with layers whose inputs hooks would not see, or not all of them.

    Args:
        model: the layers to check are ``model.layers``.
        batches: of the calibration set. Two samples suffice if they reach every layer; experts that see few
            samples may need more.
        every_layer: refuse layers that no sample reaches, too; of experts, those of which none is reached.

    Raises:
        UserError: if the model uses a weight without calling its module, or, with ``every_layer``, no sample
            reaches a layer.
    """
    calls = LayerCalls(model.layers)
    names = [layer.name for layer in model.layers]
    small = [first_samples(batch, 2) for batch in batches[:1]]
    with quiet_forward(model.module):
        for batch in chain(small, batches if every_layer else ()):
            with calls.recording():
                model.loss(batch)
            if calls.read_elsewhere:
                raise _used_without_call(calls.read_elsewhere, names)
            missed = _missed(model, calls.called)
            if not missed:
                return
    if every_layer:
        raise _never_reached(model, missed)


def _missed(model: PrunableModel, called: set[str]) -> set[str]:
    """The layers that were not called, without experts of which another one was."""
    reached = {layer.parameter_name for layer in model.layers if layer.name in called}
    return {layer.name for layer in model.layers if layer.parameter_name not in reached}


def _used_without_call(used: set[str], names: Sequence[str]) -> UserError:
    """The error of layers whose weights are read outside a call of their module."""
    return UserError(
        f"the model uses the weights of {first_and_count(used, names)} outside the call of their module, "
        f"or shares them between modules, so what they read is not known; {skip_layers_advice(used, names)}"
    )


def _never_reached(model: PrunableModel, missed: set[str]) -> UserError:
    """The error of layers that no sample reaches."""
    names = [layer.name for layer in model.layers]
    for tower in model.towers:
        if tower.layers and all(layer.name in missed for layer in tower.layers):
            where = f"tower {tower.name} ({tower.path})"
            return UserError(f"the calibration data never reach {where}; leave it out of towers")
    return UserError(
        f"the calibration data never reach {first_and_count(missed, names)}, so what they read is not known;"
        f" {skip_layers_advice(missed, names)}"
    )


def _flat(value: Any) -> Iterator[Any]:
    """The values inside nested lists, tuples and dicts."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value
