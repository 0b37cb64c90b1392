"""Pruned blocks on disk, one file each, from which a stopped run resumes."""

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
    """A pruned block.

    Attributes:
        tensors: weights and packed masks of its layers.
        errors: {layer: relative output error}; None for a pruner that uses no data.
        tokens: {layer of an expert: how many tokens were routed to it}.
        zeroed: {layer: how many weights its mask keeps that pruning made zero}.
        seconds: the time that pruning it took.
    """

    tensors: Mapping[str, Tensor]
    errors: Mapping[str, float | None]
    tokens: Mapping[str, int]
    zeroed: Mapping[str, int]
    seconds: float

    def apply(self, layers: Sequence[Layer], report: PruneReport) -> None:
        """Copy the weights into the model, and add masks, errors and counts to the report."""
        for layer in layers:
            layer.weight.data.copy_(self.tensors[f"weight {layer.name}"])
            report.masks[layer.name] = unpack(self.tensors[f"mask {layer.name}"], list(layer.weight.shape))
        report.errors.update(self.errors)
        report.tokens.update(self.tokens)
        report.zeroed.update(self.zeroed)


@dataclass(frozen=True)
class FinishedBlocks:
    """The blocks that a run has pruned.

    Attributes:
        folder: the folder of their files.
        key: hash of everything that the pruned weights depend on; files of another key are ignored.
    """

    folder: Path
    key: str

    def write(self, index: int, layers: Sequence[Layer], report: PruneReport, seconds: float) -> None:
        """Store a block; if that fails, log a warning.

        Args:
            index: its position in the order of pruning.
            layers: its layers, pruned.
            report: holds their masks and errors.
            seconds: the time that pruning it took.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for layer in layers:
            tensors[f"weight {layer.name}"] = layer.weight.detach().cpu().contiguous()
            tensors[f"mask {layer.name}"] = pack(layer.name, report.masks[layer.name])
        errors = {layer.name: report.errors[layer.name] for layer in layers}
        tokens = {layer.name: report.tokens[layer.name] for layer in layers if layer.name in report.tokens}
        zeroed = {layer.name: report.zeroed[layer.name] for layer in layers if layer.name in report.zeroed}
        metadata = {
            "key": self.key,
            "checksum": _checksum(tensors),
            "errors": json.dumps(errors),
            "tokens": json.dumps(tokens),
            "zeroed": json.dumps(zeroed),
            "seconds": repr(seconds),
        }
        try:
            with replacing(self._file(index)) as beside:
                save_file(tensors, beside, metadata=metadata)
        except (SafetensorError, OSError) as error:
            message = "block %d could not be stored in %s (%s): a resumed run will prune it again"
            log.warning(message, index, self.folder, error)

    def read(self, index: int) -> FinishedBlock | None:
        """Read the ``index``-th block in the order of pruning; None if it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        if not self._file(index).is_file():
            return None
        try:
            with safe_open(self._file(index), framework="pt") as file:
                metadata: Mapping[str, str] = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return None
                # A safetensors handle is not a mapping.
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _checksum(tensors) != metadata["checksum"]:
                raise ValueError("its checksum differs")
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s is damaged (%s): pruning that block again", self._file(index), error)
            return None
        errors = json.loads(metadata["errors"])
        tokens, zeroed = (json.loads(metadata.get(name, "{}")) for name in ("tokens", "zeroed"))
        return FinishedBlock(tensors, errors, tokens, zeroed, float(metadata["seconds"]))

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """A hash of the names and all bits of the tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
