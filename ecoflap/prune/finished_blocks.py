"""Pruned blocks on disk, one file each as soon as it is pruned: a run that was stopped applies them and goes
on with the next block.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ecoflap.models.core.layers import Layer
from ecoflap.prune.report import PruneReport
from ecoflap.storage.files import replacing
from ecoflap.storage.masks import pack, unpack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedBlock:
    """One of them.

    Attributes:
        tensors: weights and packed masks of its layers.
        errors: {layer: output error}.
        seconds: what pruning it took.
    """

    tensors: Mapping[str, Tensor]
    errors: Mapping[str, float | None]
    seconds: float

    def put(self, layers: Sequence[Layer], report: PruneReport) -> None:
        """Put the weights into the model, and masks and errors into the report."""
        for layer in layers:
            layer.weight.data.copy_(self.tensors[f"weight {layer.name}"])
            report.masks[layer.name] = unpack(self.tensors[f"mask {layer.name}"], list(layer.weight.shape))
        report.errors.update(self.errors)


@dataclass(frozen=True)
class FinishedBlocks:
    """The blocks that a run has pruned.

    Attributes:
        folder: of their files.
        key: hash of everything that the pruned weights depend on; files of another key don't count.
    """

    folder: Path
    key: str

    def write(self, index: int, layers: Sequence[Layer], report: PruneReport, seconds: float) -> None:
        """Keep the block that is the ``index``-th in the order of pruning; on a full disk the run goes on
        without.
        """
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for layer in layers:
            tensors[f"weight {layer.name}"] = layer.weight.detach().cpu().contiguous()
            tensors[f"mask {layer.name}"] = pack(layer.name, report.masks[layer.name])
        errors = {layer.name: report.errors[layer.name] for layer in layers}
        metadata = {
            "key": self.key,
            "checksum": _checksum(tensors),
            "errors": json.dumps(errors),
            "seconds": repr(seconds),
        }
        try:
            with replacing(self._file(index)) as beside:
                save_file(tensors, beside, metadata=metadata)
        except OSError as error:
            log.warning(
                "block %d could not be kept in %s (%s): a run that is started again will prune it anew",
                index,
                self.folder,
                error,
            )

    def read(self, index: int) -> FinishedBlock | None:
        """The block that is the ``index``-th in the order of pruning; null when it isn't there or isn't
        whole.
        """
        from safetensors import SafetensorError, safe_open

        if not self._file(index).is_file():
            return None
        try:
            with safe_open(self._file(index), framework="pt") as file:
                metadata: Mapping[str, str] = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safetensors handle is not a mapping
            if _checksum(tensors) != metadata["checksum"]:
                raise ValueError("its checksum differs")
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s is damaged (%s): pruning that block anew", self._file(index), error)
            return None
        return FinishedBlock(tensors, json.loads(metadata["errors"]), float(metadata["seconds"]))

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """A hash of every bit of every tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
