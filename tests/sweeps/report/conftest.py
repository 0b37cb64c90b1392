"""Records as runs write them, without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ecoflap.storage.results import LayerCount, Result, sparsity_section

CONFIG: dict[str, Any] = {
    "model": {"_target_": "ecoflap.models.t5.T5", "name": "tiny", "path": "/models/tiny", "save": False},
    "calibration": {"name": "easy_vqa", "samples": 128},
    "score": {
        "_target_": "ecoflap.score.zeroth_order.ZerothOrder",
        "name": "zeroth_order",
        "samples": 32,
        "eps": 0.001,
    },
    "allocation": {"name": "water_filling", "granularity": "block", "cap": None},
    "pruner": {"_target_": "ecoflap.prune.wanda.Wanda", "name": "wanda", "mask": "row"},
    "tracking": {"name": "wandb", "group": "sweep"},
    "sparsity": 0.5,
    "seed": 0,
    "towers": None,
    "cache": "outputs/cache",
    "cache_mode": "use",
}
STEPS = ("load", "calibrate", "evaluate_dense", "score", "allocate", "prune", "evaluate")


def make_config(**changes: Any) -> dict[str, Any]:
    """The config with some keys changed; a double underscore goes into a group: ``score__eps=0.1``."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in CONFIG.items()}
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            config[group][name] = value
        else:
            config[group] = value
    return config


def make_layers(blocks: dict[str, list[float]], size: int = 100) -> dict[str, LayerCount]:
    """Two layers per block, of the given sparsities: {tower: one per block}."""
    return {
        f"model.{tower}.layers.{index}.{layer}.weight": LayerCount(
            tower, size, kept := round(size * (1 - sparsity)), size - kept
        )
        for tower, sparsities in blocks.items()
        for index, sparsity in enumerate(sparsities)
        for layer in ("attention.q", "mlp.fc1")
    }


def write_run(
    folder: Path,
    name: str,
    pruned: float | dict[str, dict[str, float]],
    dense: float | dict[str, dict[str, float]] | None = 80.0,
    blocks: dict[str, list[float]] | None = None,
    record: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write ``folder/name/result.json``: figures of vqa/accuracy or of ``{task: {metric: value}}``, a config
    with changes, a record with others.
    """
    config = make_config(**changes)
    measured = lambda figures: (
        figures if isinstance(figures, dict) else {"vqa": {"accuracy": figures, "loss": 3.0}}
    )
    fields: dict[str, Any] = {
        "config": config,
        "versions": {"torch": "2.6.0"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "model": {
            "name": config["model"]["name"],
            "fingerprint": "f",
            "dtype": config["model"].get("dtype", "bfloat16"),
            "parameters": 2000,
            "prunable": 1000,
        },
        "data": {},
        "metrics": {"dense": {} if dense is None else measured(dense), "pruned": measured(pruned)},
        "sparsity": sparsity_section(
            make_layers(blocks or {"vision": [0.4, 0.6], "text": [0.5]}), config["sparsity"], 2000
        ),
        "steps": {
            step: {"seconds": 1.5 + place, "peak_memory_bytes": (place + 1) * 2**28, "cached": False}
            for place, step in enumerate(STEPS)
        },
    }
    path = folder / name / "result.json"
    Result(**{**fields, **(record or {})}).write(path)
    return path
