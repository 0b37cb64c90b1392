"""Figures of single layers, by block and kind: what each one was given, and the error that it makes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecoflap.storage.results.sparsity import UNCORRELATED
from ecoflap.sweeps.report.allocations import grouped
from ecoflap.sweeps.report.blocks import block_names
from ecoflap.sweeps.report.methods import Method
from ecoflap.sweeps.report.runs import Run
from ecoflap.sweeps.report.sections import Section

AS_IF = "as if uncorrelated: "
"""Before the name of a method whose errors take the columns of inputs as uncorrelated."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LayerMap:
    """A figure of every layer of a tower.

    Attributes:
        kinds: what the layers do in their block, such as ``mlp.fc1``.
        values: [kinds, blocks]; NaN where a block has no such layer.
    """

    kinds: tuple[str, ...]
    values: Array


Maps = dict[str, dict[str, LayerMap]]
"""Methods -> tower -> map."""


def maps_of(section: Section, figure: str) -> tuple[float, Maps]:
    """The maps of each method at the highest target that a run has, means over seeds.

    Methods with equal maps share one. Errors that are not exact are marked in the name.

    Args:
        section: the runs.
        figure: ``sparsity`` or ``error``.

    Returns:
        The target, and the maps.
    """
    target = max(run.sparsity for run in section.runs)
    found: dict[Method, dict[str, LayerMap]] = {}
    for method, runs in section.by_method.items():
        of_seeds = [_read(run, figure) for run in runs if run.sparsity == target]
        if of_seeds and all(of_seeds):
            found[method] = {tower: _mean([one[tower] for one in of_seeds]) for tower in of_seeds[0]}
    assumed = {
        method
        for method, runs in section.by_method.items()
        if figure == "error" and any(run.result.sparsity.get("errors") == UNCORRELATED for run in runs)
    }
    groups = grouped(found, _equal)
    names = [AS_IF * (not assumed.isdisjoint(group)) + _name(group) for group in groups]
    return target, {name: found[group[0]] for name, group in zip(names, groups, strict=True)}


def _read(run: Run, figure: str) -> dict[str, LayerMap]:
    """A run's maps by tower, means over layers of one block and kind, such as experts; {} without any."""
    layers: Mapping[str, Mapping[str, float | None]] = run.result.sparsity.get("layers", {})
    if "prune" not in run.result.steps:
        return {}
    towers = defaultdict(list)
    for name, layer in layers.items():
        if layer.get(figure) is not None:
            towers[str(layer["tower"])].append(name)
    return {tower: _map(names, layers, figure) for tower, names in towers.items()}


def _map(names: Sequence[str], layers: Mapping[str, Mapping[str, float | None]], figure: str) -> LayerMap:
    blocks = block_names(names)
    places = {block: place for place, block in enumerate(dict.fromkeys(blocks.values()))}
    found = defaultdict(list)
    for name in names:
        kind = re.sub(
            r"\.\d+(?=\.|$)", ".*", name.removeprefix(blocks[name]).strip(".").removesuffix(".weight")
        )
        found[kind, places[blocks[name]]].append(float(layers[name][figure] or 0))
    kinds = tuple(dict.fromkeys(kind for kind, _ in found))
    values = np.full((len(kinds), len(places)), np.nan)
    for (kind, place), figures in found.items():
        values[kinds.index(kind), place] = np.mean(figures)
    return LayerMap(kinds, values)


def _mean(maps: Sequence[LayerMap]) -> LayerMap:
    """The mean of those maps that have the layers of the first."""
    alike = [
        one.values for one in maps if one.kinds == maps[0].kinds and one.values.shape == maps[0].values.shape
    ]
    return LayerMap(maps[0].kinds, np.mean(alike, axis=0))


def _equal(one: Mapping[str, LayerMap], other: Mapping[str, LayerMap]) -> bool:
    return one.keys() == other.keys() and all(
        one[tower].kinds == other[tower].kinds
        and one[tower].values.shape == other[tower].values.shape
        and np.allclose(one[tower].values, other[tower].values, atol=1e-3, equal_nan=True)
        for tower in one
    )


def _name(group: Sequence[Method]) -> str:
    """The coarse stage that the methods share, or the name of the first and how many more there are."""
    if len(group) == 1:
        return group[0].label
    coarse = {method.coarse for method in group}
    return coarse.pop() if len(coarse) == 1 else f"{group[0].label} and {len(group) - 1} more"
