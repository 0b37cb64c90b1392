"""The sparsity of each block of each tower."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ecoflap.sweeps.report.runs import Run

Blocks = dict[str, dict[str, float]]
"""Tower -> block -> sparsity, both in pruning order."""


def allocated(run: Run) -> Blocks:
    """The sparsities of a run's blocks, none if they are unknown.

    Whole units and runs that did not prune are counted by the allocation file, others by the record.
    """
    layers = run.result.sparsity.get("layers", {})
    if run.result.is_structured:  # the record has the sizes of the smaller matrices, and no removed experts
        counts = run.allocation
        kept, sizes = counts.get("keep", {}), counts.get("sizes", {})
        layers = {name: {**layer, "size": sizes.get(name, 0)} for name, layer in layers.items()}
    elif "prune" in run.result.steps:
        kept = {name: layer["kept"] for name, layer in layers.items()}
    else:
        kept = run.allocation.get("keep", {})
    return block_sparsities(layers, kept) if kept and kept.keys() == layers.keys() else {}


def block_sparsities(layers: Mapping[str, Mapping[str, Any]], kept: Mapping[str, int]) -> Blocks:
    """Removed weights / weights of each block.

    Args:
        layers: ``tower`` and ``size`` of each layer, as in the record of a run.
        kept: number of weights that each layer keeps.
    """
    towers = defaultdict(list)
    for name, layer in layers.items():
        towers[layer["tower"]].append(name)
    blocks: Blocks = {}
    for tower, names in towers.items():
        remaining, size = Counter[str](), Counter[str]()
        for name, block in block_names(names).items():
            remaining[block] += kept[name]
            size[block] += layers[name]["size"]
        blocks[tower] = {block: 1 - remaining[block] / size[block] for block in size}
    return blocks


def block_names(layers: Iterable[str]) -> dict[str, str]:
    """The block of each layer of one tower: a member of the one list that holds all its layers.

    The list ends where the names first differ or, in a tower of one block, before the first number.
    """
    parts = {name: name.split(".") for name in layers}
    levels = enumerate(zip(*parts.values(), strict=False))  # as deep as the shortest name
    is_list = (len(set(level)) > 1 or re.fullmatch(r"(.*_)?\d+", level[0]) for _, level in levels)
    depth = next((depth for depth, found in enumerate(is_list) if found), 0)
    return {name: ".".join(path[: depth + 1]) for name, path in parts.items()}
