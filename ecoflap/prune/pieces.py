"""Rows of a pruned layer, and the whole layer made of those that the processes of the run have pruned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ecoflap.distributed.collectives import gathered, tensor_from
from ecoflap.distributed.processes import rank
from ecoflap.models.core.layers import Layer
from ecoflap.prune.row_shards import RowShards


class Piece(NamedTuple):
    """Some rows of a pruned layer, or all of them.

    Attributes:
        mask: [rows, cols], True where kept, on the CPU.
        energies: mean over tokens of ||W x||^2 and of ||(W' - W) x||^2; None if no token was seen.
        note: a warning of the pruner, or None.
        zeroed: how many weights the mask keeps that pruning has made zero.
    """

    mask: Tensor
    energies: tuple[float, float] | None
    note: str | None
    zeroed: int

    @property
    def relative_error(self) -> float | None:
        """sqrt(||(W' - W) X||^2 / ||W X||^2); 0 for an output of zeros, None if no token was seen."""
        if self.energies is None:
            return None
        output, error = self.energies
        return math.sqrt(max(error, 0.0) / output) if output > 0 else 0.0


def exchanged(shards: Mapping[Layer, RowShards], pieces: dict[Layer, Piece]) -> Iterator[tuple[Layer, Piece]]:
    """Give each process the rows that others have pruned.

    Args:
        shards: which process has pruned which rows of each layer, in the same order in all processes.
        pieces: the rows that this process has pruned, whose weights the layers hold; empty afterwards.

    Yields:
        Each layer and the piece that is all of it; the layer holds its weights.
    """
    said = gathered([pieces[layer][1:] if layer in pieces else None for layer in shards])
    for layer, *of_layer in zip(shards, *said, strict=True):
        known = [one for one in of_layer if one is not None]
        outputs = [energies for energies, _, _ in known if energies is not None]
        energies = (sum(one for one, _ in outputs), sum(one for _, one in outputs)) if outputs else None
        mask = _exchange_rows(layer, shards[layer], pieces.pop(layer, None))
        yield layer, Piece(mask, energies, known[0][1], sum(zeroed for _, _, zeroed in known))


def _exchange_rows(layer: Layer, shards: RowShards, piece: Piece | None) -> Tensor:
    """Give each process the weights and the mask that others have of a layer; returns the whole mask."""
    weight, mask = layer.matrix(), torch.zeros(layer.shape, dtype=torch.bool)
    if piece is not None:
        mask[shards.own] = piece.mask
    for owner in shards.owners:
        rows = shards.span(owner)
        received = tensor_from(weight[rows], owner)
        mask[rows] = tensor_from(mask[rows], owner)
        if owner != rank():
            weight[rows] = received
    return mask
