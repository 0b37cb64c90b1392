"""The model of a sweep's last run, kept in memory: the next run on it gets its dense weights back instead of
loading it again.

A kept model is trusted only when its fingerprint, over every weight and setting, is the one that it was
loaded with; whatever a run has changed beyond the layers it pruned, the next run then loads from the
checkpoint.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.loader import Selection
from ecoflap.models.loading.protocol import Loader

log = logging.getLogger(__name__)

SPARE = 1.2  # the copies must leave this much more memory free than they take


@dataclass
class KeptModel:
    """A model and what brings it back to how it was loaded.

    Attributes:
        identity: what was asked for.
        model: as the last run left it.
        fingerprint: of the model as it was loaded.
        dense: copy of each layer's weights, on the CPU.
        interface: the attributes of the model's interface; a calibration set may change them.
    """

    identity: str
    model: PrunableModel
    fingerprint: str
    dense: dict[str, Tensor]
    interface: dict[str, Any]

    @torch.no_grad()
    def restored(self) -> PrunableModel | None:
        """The model as it was loaded; null when a run has changed more than its layers."""
        for layer in self.model.layers:
            if layer.weight.shape != self.dense[layer.name].shape:
                return None
            layer.weight.copy_(self.dense[layer.name])
        if self.model.interface is not None:
            vars(self.model.interface).clear()
            vars(self.model.interface).update(self.interface)
        return self.model if self.model.fingerprint() == self.fingerprint else None


_kept: KeptModel | None = None


def load(loader: Loader, device: torch.device, selection: Selection, keep: bool) -> tuple[PrunableModel, str]:
    """The model of a loader, from the last run where that had the same one, and its fingerprint.

    Args:
        loader: a model's config group, as a dataclass.
        device: where it is to be.
        selection: which towers and layers are pruned.
        keep: keep it for the next run, memory permitting.

    Raises:
        UserError: the loader can't load it.
    """
    global _kept
    identity = json.dumps(
        [
            f"{type(loader).__module__}.{type(loader).__qualname__}",
            asdict(loader),  # type: ignore[call-overload]
            str(device),
            asdict(selection),
        ],
        default=str,
    )
    last, _kept = _kept, None  # whatever happens now, a half-restored model must not stay
    if last is not None and last.identity == identity and (model := last.restored()) is not None:
        log.info("load: %s is still in memory", model.name)
        _kept = last
        return model, last.fingerprint
    del last
    model = loader.load(device, selection)
    fingerprint = model.fingerprint()
    if keep and _fits(model):
        dense = {layer.name: layer.weight.detach().to("cpu", copy=True) for layer in model.layers}
        interface = {} if model.interface is None else dict(vars(model.interface))
        _kept = KeptModel(identity, model, fingerprint, dense, interface)
    return model, fingerprint


def forget() -> None:
    """Let go of the kept model."""
    global _kept
    _kept = None


def _fits(model: PrunableModel) -> bool:
    """Whether the copies leave enough memory."""
    copies = sum(layer.weight.numel() * layer.weight.element_size() for layer in model.layers)
    return bool(psutil.virtual_memory().available > SPARE * copies)
