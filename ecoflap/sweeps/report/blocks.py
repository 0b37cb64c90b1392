"""The sparsity that each block of each tower was given."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ecoflap.storage.file_names import ALLOCATION
from ecoflap.sweeps.report.runs import Run

Blocks = dict[str, dict[str, float]]
"""Tower -> block -> sparsity, both in pruning order."""


def allocated(run: Run) -> Blocks:
    """What a run removed from each block; what its allocation says where it stopped before pruning; empty
    where there is neither.
    """
    layers = run.result.sparsity.get("layers", {})
    kept = (
        {name: layer["kept"] for name, layer in layers.items()}
        if "prune" in run.result.steps
        else _saved(run.folder)
    )
    return block_sparsities(layers, kept) if kept and kept.keys() == layers.keys() else {}


def block_sparsities(layers: Mapping[str, Mapping[str, Any]], kept: Mapping[str, int]) -> Blocks:
    """Removed weights / weights of each block.

    Args:
        layers: {layer: its ``tower`` and ``size``}, as the record of a run has them.
        kept: {layer: weights that it keeps}.
    """
    towers = defaultdict(list)
    for name, layer in layers.items():
        towers[layer["tower"]].append(name)
    blocks: Blocks = {}
    for tower, names in towers.items():
        left, size = Counter[str](), Counter[str]()
        for name, block in block_names(names).items():
            left[block] += kept[name]
            size[block] += layers[name]["size"]
        blocks[tower] = {block: 1 - left[block] / size[block] for block in size}
    return blocks


def block_names(layers: Iterable[str]) -> dict[str, str]:
    """{layer: block} of one tower: its blocks are the members of the one list that holds all its layers.

    The list is where the names part; or, in a tower of one block, before the first number.
    """
    parts = {name: name.split(".") for name in layers}
    levels = enumerate(zip(*parts.values(), strict=False))  # as deep as the shortest name
    depth = next(
        (depth for depth, level in levels if len(set(level)) > 1 or re.fullmatch(r"(.*_)?\d+", level[0])), 0
    )
    return {name: ".".join(path[: depth + 1]) for name, path in parts.items()}


def _saved(folder: Path) -> dict[str, int]:
    """The counts of a run's allocation file; empty where it has none."""
    file = folder / ALLOCATION
    return dict(json.loads(file.read_text(encoding="utf-8"))["keep"]) if file.is_file() else {}
