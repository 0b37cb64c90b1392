"""What the API removes is what a run of the command line removes at the same settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ecoflap
from ecoflap.storage.masks import load_masks
from ecoflap.storage.results import Result
from tests.api.conftest import llama, texts
from tests.cli.conftest import run  # noqa: F401  a fixture

BY_LAYER = ["allocation=water_filling", "allocation.granularity=layer"]
METHODS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "wanda": (
        ["pruner=wanda", "score=zeroth_order", "score.samples=8", "score.batch_size=4"],
        {"score": ecoflap.ZerothOrder(samples=8, batch_size=4)},
    ),
    "sparsegpt": (
        ["pruner=sparsegpt", "score=first_order", "score.batch_size=4", *BY_LAYER],
        {
            "pruner": "sparsegpt",
            "score": ecoflap.FirstOrder(batch_size=4),
            "allocation": ecoflap.WaterFilling(granularity="layer"),
        },
    ),
    "default": (["allocation=auto"], {}),
    "dense": (
        ["pruner=wanda", "pruner.mask=matrix", "score=none", "propagate=dense"],
        {"pruner": "wanda", "mask": "matrix", "score": "none", "propagate": "dense"},
    ),
    "layer": (
        ["pruner=sparsegpt", "score=none", "propagate=layer"],
        {"pruner": "sparsegpt", "score": "none", "propagate": "layer"},
    ),
    "compensated": (
        ["pruner=admm", "score=none", "propagate=compensated"],
        {"pruner": "admm", "score": "none", "propagate": "compensated"},
    ),
    "global_gradient": (
        ["pruner=global_gradient", "pruner.batch_size=4"],
        {"pruner": ecoflap.GlobalGradient(batch_size=4)},
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_masks_scores_and_counts_are_those_of_a_run(
    run: Callable[..., Result],
    tmp_path: Path,
    method: str,
) -> None:
    overrides, options = METHODS[method]
    one, words = llama(), texts(40)
    one.module.save_pretrained(tmp_path / "dense")
    one.processor.save_pretrained(tmp_path / "dense")
    (tmp_path / "train.txt").write_text("\n\n".join(words))
    data = [
        f"calibration.path={tmp_path / 'train.txt'}",
        "calibration.samples=8",
        "calibration.sequence_length=16",
    ]
    recorded = run(
        [
            "model=causal_lm",
            f"model.path={tmp_path / 'dense'}",
            "model.save=true",
            *data,
            *overrides,
            "sparsity=0.5",
            "seed=3",
            "steps=[calibrate,score,allocate,prune]",
            "tracking=none",
            "device=cpu",
            "cache_mode=off",
        ]
    )
    model = ecoflap.load(one.module, one.processor)
    drawn = ecoflap.calibrate(model, words, samples=8, sequence_length=16, seed=3)
    result = ecoflap.prune(model, data=drawn, sparsity=0.5, seed=3, **options)

    masks = load_masks(tmp_path / "run" / "checkpoint" / "masks.bits")
    assert result.masks.keys() == masks.keys()
    assert all(torch.equal(result.masks[name], mask) for name, mask in masks.items())
    assert result.record.sparsity == recorded.sparsity
    assert result.record.data["calibration"]["fingerprint"] == recorded.data["calibration"]["fingerprint"]
    figures = {name: value for name, value in recorded.model.items() if name not in ("name", "fingerprint")}
    assert figures.items() <= result.record.model.items()
    for part in ("pruner", "score", "allocation"):
        written = result.record.config[part]
        if written is not None:
            assert written == recorded.config[part]
    again = one.again.from_pretrained(tmp_path / "run" / "checkpoint").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.module.state_dict().items())
