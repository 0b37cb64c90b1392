"""The sparsity section of a result: all totals are computed here from the layers, to write or verify it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

UNCORRELATED = "uncorrelated"
"""The kind of errors that take the columns of a layer's inputs as uncorrelated."""
LEAST_SPARSITY = 0.3
LEAST_WEIGHTS = 2**15
"""Layers with fewer zeros or weights gain little or nothing without their zeros, and are loaded dense."""


@dataclass(frozen=True)
class LayerCount:
    """The counts of one pruned layer.

    Attributes:
        tower: Name of the tower that the layer belongs to.
        size: Number of weights.
        kept: Number of weights that the mask keeps.
        zeros: Number of weights that are zero in the pruned model; more than ``size - kept`` if some kept
            weights were zero already.
        error: Reconstruction error of the layer's output, or None if the pruner has none.
    """

    tower: str
    size: int
    kept: int
    zeros: int
    error: float | None = None


def sparsity_section(
    layers: Mapping[str, LayerCount],
    target: float | None,
    parameters: int,
    total: str | None = None,
    allocated_by: str | None = None,
    coarse: str | None = None,
) -> dict[str, Any]:
    """All sparsity figures of a run.

    Args:
        layers: Parameter name in the saved checkpoint -> its counts; only the layers that were selected for
            pruning.
        target: The target sparsity, or None if there is none.
        parameters: Number of parameters of the whole model, prunable or not.
        total: How the allocation adds up: ``exact``, ``as_given``, ``groups`` or ``units``; None without an
            allocation.
        allocated_by: What decided how many weights each layer keeps: ``allocation``, or ``pruner``, which
            then compares the weights of all layers; None without an allocation.
        coarse: What the allocation goes by: the name of the scorer, its own name if it takes no scores, or
            ``none`` for a uniform sparsity; None without an allocation.

    Returns:
        ``target``; ``total``; ``allocated_by``; ``coarse``; ``prunable`` = zeros / weights of the selected
        layers; ``model`` = the same zeros / all parameters; ``towers`` = the prunable figure per tower;
        ``layers`` = the counts and ``sparsity`` = zeros / size per layer.
    """
    towers = dict.fromkeys(layer.tower for layer in layers.values())
    return {
        "target": target,
        "total": total,
        "allocated_by": allocated_by,
        "coarse": coarse,
        "prunable": _share(layers.values()),
        "model": sum(layer.zeros for layer in layers.values()) / max(parameters, 1),
        "towers": {
            tower: _share(layer for layer in layers.values() if layer.tower == tower) for tower in towers
        },
        "layers": {name: {**vars(layer), "sparsity": _share([layer])} for name, layer in layers.items()},
    }


def read_layers(section: Mapping[str, Any]) -> dict[str, LayerCount]:
    """The layer counts of a sparsity section.

    Raises:
        ValueError: if a layer lacks one of its counts.
    """
    names = [field.name for field in fields(LayerCount)]
    for layer, counts in section["layers"].items():
        if missing := [name for name in names if name not in counts]:
            raise ValueError(
                f"the record's layer {layer} lacks {', '.join(missing)}: write the section with"
                " ecoflap.storage.results.sparsity_section"
            )
    return {
        layer: LayerCount(**{name: counts[name] for name in names})
        for layer, counts in section["layers"].items()
    }


def _share(layers: Iterable[LayerCount]) -> float:
    """Zeros / weights over some layers; 0 for none."""
    counted = list(layers)
    return sum(layer.zeros for layer in counted) / max(sum(layer.size for layer in counted), 1)
