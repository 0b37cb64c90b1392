"""Whether probes can share a forward pass, each with a copy of the batch to itself.

Not so where the first dimension of what some layer reads is not samples, one after the other: where tokens
come first (LED's attention), where two images per sample are interleaved, or where a router sends a layer
some of the tokens only (experts), as many of each copy as its probe makes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.console.telemetry import out_of_memory
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Block, Tower
from ecoflap.score.probing import Probe

# Of probes in a block, in one pass or in one each: [probes, batch].
Losses = Callable[[Sequence[Probe], Block, bool], Tensor]


def probes_stack(tower: Tower, dense: Tensor, losses: Losses) -> bool:
    """Whether two probes of a tower move the losses in one pass as they do one by one.

    Args:
        tower: each kind of its layers is tried, in the last block in which the loss depends on one.
        dense: the losses of a batch without a probe, [batch].
        losses: those with probes.
    """
    kinds: dict[str, list[tuple[Block, Layer]]] = {}
    for block in reversed(tower.blocks):
        for layer in block.layers:
            kinds.setdefault(re.sub(r"\d+", "*", layer.name.removeprefix(block.name)), []).append(
                (block, layer)
            )
    rows = Rows(tower.layers)
    return all(
        _alike(candidates, dense, losses, rows) and rows.belong_to(len(dense))
        for candidates in kinds.values()
    )


def _alike(candidates: Sequence[tuple[Block, Layer]], dense: Tensor, losses: Losses, rows: Rows) -> bool:
    """Whether it is so for the first layer that the loss depends on."""
    for block, layer in candidates:
        probes = [Probe((layer,), 0, sign) for sign in (1.0, -1.0)]
        parts = []
        for probe in probes:
            with rows.watching():
                parts.append(losses([probe], block, False))
        apart = torch.cat(parts)
        effect = (apart - dense).abs().max()
        if effect:
            break
    try:
        together = losses(probes, block, True)
    except (RuntimeError, IndexError) as error:  # shapes that don't fit each other
        if out_of_memory(error):
            raise
        return False
    return bool((together - apart).abs().max() <= 0.05 * effect + 1e-5 * apart.abs().max())


class Rows:
    """How many rows the layers read in the calls of each pass; a router sends a layer another number in
    others.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.seen: dict[str, set[tuple[int, ...]]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count in one pass."""
        counts: dict[str, list[int]] = {}

        def counting(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _, arguments: counts.setdefault(name, []).append(arguments[0].shape[:-1].numel())

        handles = [layer.module.register_forward_pre_hook(counting(layer.name)) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for name, rows in counts.items():
            self.seen.setdefault(name, set()).add(tuple(rows))

    def belong_to(self, samples: int) -> bool:
        """Whether each layer read as many rows in all passes, the same number of each sample."""
        return all(
            len(seen) == 1 and all(rows % samples == 0 for rows in next(iter(seen)))
            for seen in self.seen.values()
        )
