"""Nudges of layers' outputs: adding eps x z^T to what a layer puts out is what moving its weight by eps z
would do, and leaves the weight alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ecoflap.models.core.layers import Layer
from ecoflap.ops import gaussian

Noise = tuple[str | int, ...]


class Probe(NamedTuple):
    """One nudge of one layer, or of all layers of a block: +eps z or -eps z of one draw of z."""

    layers: tuple[Layer, ...]
    draw: int
    sign: float


@contextmanager
def probing(probes: Sequence[Probe], eps: float, noise: Noise) -> Iterator[None]:
    """Add probe k to the outputs of its layers for copy k of the batch.

    Args:
        probes: one per copy.
        eps: size of a probe.
        noise: what the draws depend on beside layer and draw.
    """
    by_layer: dict[Layer, list[tuple[int, Probe]]] = {}
    for copy, probe in enumerate(probes):
        for layer in probe.layers:
            by_layer.setdefault(layer, []).append((copy, probe))
    handles = [
        layer.module.register_forward_hook(_nudge(layer, places, len(probes), eps, noise))
        for layer, places in by_layer.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nudge(layer: Layer, places: Sequence[tuple[int, Probe]], copies: int, eps: float, noise: Noise) -> Any:
    # The block may be away now, and its weights' place nowhere in particular; the inputs say where it runs.
    draws = {probe.draw: gaussian(layer.shape, *noise, layer.name, probe.draw) for _, probe in places}
    runs = _runs(places)

    def hook(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        inputs, result = arguments[0].float(), output.float().clone()
        samples = len(inputs) // copies  # or samples x tokens: some blocks flatten the two before a layer
        for draw, directions in draws.items():
            draws[draw] = directions.to(inputs.device)
        for first, draw, signs in runs:
            rows = slice(first * samples, (first + len(signs)) * samples)
            steps = (eps * torch.tensor(signs, device=inputs.device)).repeat_interleave(samples)
            result[rows].addcmul_(inputs[rows] @ draws[draw].t(), steps.view(-1, *[1] * (result.ndim - 1)))
        return result.to(output.dtype)

    return hook


def _runs(places: Sequence[tuple[int, Probe]]) -> list[tuple[int, int, list[float]]]:
    """(first copy, draw, signs) of neighbouring copies with the same draw, as +eps and -eps mostly are: one
    product serves them all.
    """
    runs: list[tuple[int, int, list[float]]] = []
    for copy, probe in places:
        if runs and runs[-1][1] == probe.draw and runs[-1][0] + len(runs[-1][2]) == copy:
            runs[-1][2].append(probe.sign)
        else:
            runs.append((copy, probe.draw, [probe.sign]))
    return runs
