"""Configs that name the place of an earlier release load the same class."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from ecoflap.run.instantiate import build
from ecoflap.run.moved import MOVED, current_place


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("pruners.Magnitude", "magnitude"),
        ("pruners.Wanda", "wanda"),
        ("pruners.SparseGPT", "sparsegpt"),
        ("whole_model.GlobalMagnitude", "global_magnitude"),
        ("whole_model.GlobalGradient", "global_gradient"),
    ],
)
def test_pruners_of_one_file(old: str, name: str) -> None:
    assert build("pruner", OmegaConf.create({"_target_": f"ecoflap.prune.{old}"})).name == name


def test_no_place_moved_twice() -> None:
    assert not {place for place in MOVED.values() if current_place(place) != place}
