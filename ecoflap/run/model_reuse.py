"""Reuse the model of a sweep's last run: restore its dense weights instead of loading it again.

A model is reused only if its fingerprint, over all weights and settings, is the one that it had after
loading. If a run has changed more than the layers that it pruned, the next run loads the checkpoint.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ecoflap.console.host_memory import free_host_memory
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.protocol import Loader

log = logging.getLogger(__name__)

SPARE = 1.2  # the free memory must be this many times the size of the copies


@dataclass
class ReusableModel:
    """A model, and what restores it to its state after loading.

    Attributes:
        identity: loader, device and selection, as JSON.
        model: in the state that the last run left it in.
        fingerprint: the fingerprint of the model after loading.
        dense: {layer: copy of its weight on the CPU}.
        interface: the attributes of the model's interface, which a calibration set may change.
    """

    identity: str
    model: PrunableModel
    fingerprint: str
    dense: dict[str, Tensor]
    interface: dict[str, Any]

    @torch.no_grad()
    def restored(self) -> PrunableModel | None:
        """The model in its state after loading; None if a run has changed more than its layers."""
        for layer in self.model.layers:
            if layer.weight.shape != self.dense[layer.name].shape:
                return None
            layer.weight.copy_(self.dense[layer.name])
        if self.model.interface is not None:
            vars(self.model.interface).clear()
            vars(self.model.interface).update(self.interface)
        return self.model if self.model.fingerprint() == self.fingerprint else None


_reusable: ReusableModel | None = None


def load(loader: Loader, device: torch.device, selection: Selection, keep: bool) -> tuple[PrunableModel, str]:
    """Load a model, or reuse that of the last run if it is the same.

    Args:
        loader: a loader of the config group ``model``.
        device: the device that it is loaded to.
        selection: which towers and layers are pruned.
        keep: keep the model for the next run, if memory allows.

    Returns:
        The model and its fingerprint.

    Raises:
        UserError: if the loader can't load it.
    """
    global _reusable
    name = f"{type(loader).__module__}.{type(loader).__qualname__}"
    values = asdict(loader)  # type: ignore[call-overload]
    identity = json.dumps([name, values, str(device), asdict(selection)], default=str)
    last, _reusable = _reusable, None  # so that an error leaves no half-restored model behind
    if last is not None and last.identity == identity and (model := last.restored()) is not None:
        log.info("load: %s is still in memory", model.name)
        _reusable = last
        return model, last.fingerprint
    del last
    model = loader.load(device, selection)
    fingerprint = model.fingerprint()
    if keep and _fits(model):
        dense = {layer.name: layer.weight.detach().to("cpu", copy=True) for layer in model.layers}
        interface = {} if model.interface is None else dict(vars(model.interface))
        _reusable = ReusableModel(identity, model, fingerprint, dense, interface)
    return model, fingerprint


def _fits(model: PrunableModel) -> bool:
    """Whether there is enough free memory for copies of the layers."""
    copies = sum(layer.weight.numel() * layer.weight.element_size() for layer in model.layers)
    return free_host_memory() > SPARE * copies
