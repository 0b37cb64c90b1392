"""Perturb layers by their outputs: adding eps x z^T has the effect of adding eps z to the weight."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layers import Layer, read_by
from ecoflap.ops import gaussian

Noise = tuple[str | int, ...]


class Probe(NamedTuple):
    """One perturbation of a layer, or of all layers of a block: +eps z or -eps z for one draw of z.

    Attributes:
        layers: the layers that it perturbs.
        draw: the number of the draw.
        sign: 1 or -1.
    """

    layers: tuple[Layer, ...]
    draw: int
    sign: float


def probing(probes: Sequence[Probe], eps: float, noise: Noise) -> AbstractContextManager[None]:
    """Add probe k to the outputs of its layers for copy k of the batch.

    Args:
        probes: one per copy.
        eps: size of a probe, in the unit of the weights.
        noise: seed of the draws, beside the layer's name and the draw's number.
    """
    by_layer: dict[Layer, list[tuple[int, Probe]]] = {}
    for copy, probe in enumerate(probes):
        for layer in probe.layers:
            by_layer.setdefault(layer, []).append((copy, probe))
    return hooks(
        layer.module.register_forward_hook(
            _perturb(layer, by_copy, len(probes), eps, noise), with_kwargs=True
        )
        for layer, by_copy in by_layer.items()
    )


def _perturb(
    layer: Layer, by_copy: Sequence[tuple[int, Probe]], copies: int, eps: float, noise: Noise
) -> Any:
    """A forward hook that adds its probe to each copy's output."""
    # The draws follow the inputs to their device: an offloaded weight does not say where its block runs.
    draws = {probe.draw: gaussian(layer.shape, *noise, layer.name, probe.draw) for _, probe in by_copy}
    runs = _runs(by_copy)

    def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> Tensor:
        inputs, result = read_by(arguments, keywords).float(), output.float().clone()
        samples = len(inputs) // copies  # or samples x tokens: some blocks flatten the two before a layer
        for draw, directions in draws.items():
            draws[draw] = directions.to(inputs.device)
        for first, draw, signs in runs:
            rows = slice(first * samples, (first + len(signs)) * samples)
            steps = (eps * torch.tensor(signs, dtype=torch.float32, device=inputs.device)).repeat_interleave(
                samples
            )
            result[rows].addcmul_(inputs[rows] @ draws[draw].t(), steps.view(-1, *[1] * (result.ndim - 1)))
        return result.to(output.dtype)

    return hook


def _runs(by_copy: Sequence[tuple[int, Probe]]) -> list[tuple[int, int, list[float]]]:
    """Group consecutive copies with the same draw, whose perturbations need one product x z^T.

    Returns:
        (first copy, draw, signs) of each group.
    """
    runs: list[tuple[int, int, list[float]]] = []
    for copy, probe in by_copy:
        if runs and runs[-1][1] == probe.draw and runs[-1][0] + len(runs[-1][2]) == copy:
            runs[-1][2].append(probe.sign)
        else:
            runs.append((copy, probe.draw, [probe.sign]))
    return runs
