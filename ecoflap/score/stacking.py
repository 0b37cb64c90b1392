"""Find out whether probes can share a forward pass, each with its own copy of the batch.

They cannot if the first dimension of a layer's input does not list the samples one after the other: if tokens
come first (LED's attention), if two images per sample are interleaved, or if a router sends a layer some of
the tokens (mixture of experts), whose number then depends on the probe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ecoflap.console.telemetry import out_of_memory
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Block, Tower
from ecoflap.score.probing import Probe

# (probes, the block that they are in, whether they share a pass) -> losses [probes, batch]
Losses = Callable[[Sequence[Probe], Block, bool], Tensor]


def can_stack(tower: Tower, dense: Tensor, losses: Losses) -> bool:
    """Whether two probes of a tower give the same losses in one pass as in two.

    Each kind of layer (such as all query projections) is tried in the last block where it affects the loss.

    Args:
        tower: the tower.
        dense: losses of a batch without a probe, [batch].
        losses: computes the losses with probes.
    """
    if any(layer.is_routed for layer in tower.layers):
        return False
    kinds: dict[str, list[tuple[Block, Layer]]] = {}
    for block in reversed(tower.blocks):
        for layer in block.layers:
            kind = re.sub(r"\d+", "*", layer.name.removeprefix(block.name))
            kinds.setdefault(kind, []).append((block, layer))
    rows = RowCounts(tower.layers)
    return all(
        _losses_agree(candidates, dense, losses, rows) and rows.per_sample(len(dense))
        for candidates in kinds.values()
    )


def _losses_agree(
    candidates: Sequence[tuple[Block, Layer]], dense: Tensor, losses: Losses, rows: RowCounts
) -> bool:
    """Whether stacked and separate probes give the same losses, in the first layer that affects the loss."""
    for block, layer in candidates:
        probes = [Probe((layer,), 0, sign) for sign in (1.0, -1.0)]
        parts = []
        for probe in probes:
            with rows.counting():
                parts.append(losses([probe], block, False))
        separate = torch.cat(parts)
        effect = (separate - dense).abs().max()
        if effect:
            break
    try:
        stacked = losses(probes, block, True)
    except (RuntimeError, IndexError) as error:  # shapes that don't match
        if out_of_memory(error):
            raise
        return False
    return bool((stacked - separate).abs().max() <= 0.05 * effect + 1e-5 * separate.abs().max())


class RowCounts:
    """How many rows each layer reads in its calls, pass by pass.

    Behind a router, the numbers differ from pass to pass.

    Attributes:
        layers: the layers.
        seen: {layer: rows of each call, for each distinct pass}.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.seen: dict[str, set[tuple[int, ...]]] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the rows of the pass that runs in this context."""
        counts: dict[str, list[int]] = {}

        def count(name: str) -> Callable[[Tensor], None]:
            return lambda inputs: counts.setdefault(name, []).append(inputs.shape[:-1].numel())

        with hooks(layer.before_calls(count(layer.name)) for layer in self.layers):
            yield
        for name, rows in counts.items():
            self.seen.setdefault(name, set()).add(tuple(rows))

    def per_sample(self, samples: int) -> bool:
        """Whether each layer read the same rows in all passes, in each call a multiple of the samples."""
        return all(
            len(seen) == 1 and all(rows % samples == 0 for rows in next(iter(seen)))
            for seen in self.seen.values()
        )
