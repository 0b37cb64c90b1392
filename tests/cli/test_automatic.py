"""What ``auto`` stands for."""

from __future__ import annotations

import pytest

from ecoflap.errors import UserError
from ecoflap.run.plan.automatic import settle
from tests.cli.conftest import composed_as_given


@pytest.mark.parametrize(
    ("overrides", "score", "allocation", "propagate"),
    [
        ([], "none", "in_context", "dense"),
        (["pruner=ria"], "none", "in_context", "dense"),
        (["pruner=magnitude"], "none", "in_context", "dense"),
        (["pruner=wanda", "pruner.repair=true"], "none", "in_context", "pruned"),
        (["pruner=sparsegpt"], "none", "in_context", "pruned"),
        (["pruner=admm", "propagate=layer"], "none", "in_context", "layer"),
        (["pruner.mask=n:4"], "none", "in_context", "dense"),
        (["pruner.mask=2:4", "sparsity=0.5"], "none", "water_filling", "pruned"),
        (["pruner=global_magnitude"], "none", "water_filling", "pruned"),
        (["pruner=magnitude", "steps=[allocate,prune]"], "none", "water_filling", "pruned"),
        (["score=none"], "none", "water_filling", "pruned"),
        (["score=first_order"], "first_order", "water_filling", "pruned"),
        (["allocation=water_filling"], "zeroth_order", "water_filling", "pruned"),
        (["allocation=owl"], "none", "owl", "pruned"),
        (["allocation=owl", "allocation.spread=auto"], "none", "owl", "dense"),
        (["allocation=evopress"], "none", "evopress", "dense"),
        (["steps=[calibrate,score]"], "zeroth_order", "water_filling", "pruned"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else value,
)
def test_parts(overrides: list[str], score: str, allocation: str, propagate: str) -> None:
    settled = settle(composed_as_given(overrides))
    found = (settled.score.name, settled.allocation.name, settled.propagate)
    assert found == (score, allocation, propagate)
    assert settle(settled) == settled


@pytest.mark.parametrize("others", [[], ["score=none", "allocation=water_filling", "propagate=pruned"]])
def test_a_sparsity_of_a_range_is_rounded(others: list[str]) -> None:
    config = composed_as_given([f"sparsity={0.1 + 0.1 + 0.1}", *others])
    assert config.sparsity == 0.30000000000000004
    settled = settle(config)
    assert settled.sparsity == 0.3
    assert settle(settled) == settled


@pytest.mark.parametrize("option", ["+allocation.cap=1", "+allocation.samples=8", "+score.noises=2"])
def test_an_option_that_would_be_lost(option: str) -> None:
    with pytest.raises(
        UserError, match=r"is not an option of (allocation|score)=auto, which chooses by itself"
    ):
        settle(composed_as_given([option]))
