"""Inputs that a model can't be pruned from are refused before anything is evaluated, scored or allocated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import ecoflap
from ecoflap.allocate.in_context import InContext
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.losses import next_token_loss
from ecoflap.storage.results import Result
from tests import unchained

SWAPS = ["pruner=wanda", "pruner.refine=swaps", "allocation=in_context"]
ORDER = r"propagate=dense prunes the last blocks of tower language .* use propagate=pruned"


def looped(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """The loss of a LLaMA whose blocks run twice, the second time on what they have put out."""
    model: Any = module
    once = model.model(inputs_embeds=model.model.embed_tokens(batch["input_ids"])).last_hidden_state
    return next_token_loss(model(inputs_embeds=once).logits, batch["input_ids"])


@pytest.fixture
def looped_run(text_run: list[str]) -> list[str]:
    return [*text_run, f"model.loss={__name__}.looped", "calibration.samples=4"]


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (SWAPS, ORDER),
        (["pruner=sparsegpt", "propagate=dense"], ORDER),
        (["propagate=layer"], r"propagate=layer and compensated prune a layer before .* tower language .*"),
    ],
    ids=["swaps", "sparsegpt", "layer"],
)
def test_refused_before_anything_is_made(
    looped_run: list[str], options: list[str], refused: str, run: Callable[..., Result], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=refused):
        run([*looped_run, *options])
    made = {file.name for file in (tmp_path / "run").iterdir()}
    assert not made & {"scores.json", "allocation.json", "predictions", "blocks", "result.json"}


def test_with_the_option_that_the_error_names(looped_run: list[str], run: Callable[..., Result]) -> None:
    assert run([*looped_run, *SWAPS, "propagate=pruned", "allocation.steps=1", "sparsity=0.3"])


def test_statistics_that_are_gathered_before_pruning_need_no_order(
    looped_run: list[str], run: Callable[..., Result]
) -> None:
    assert run([*looped_run, "pruner=wanda", "propagate=dense", "score=none"])


def test_towers_that_feed_earlier_ones_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Granite 4 Vision's projectors, listed behind the language model that they feed."""
    monkeypatch.setattr(InContext, "__call__", lambda *_: pytest.fail("allocated before the refusal"))
    model, data = unchained.build("granite4_vision"), unchained.samples("granite4_vision")
    model = replace(model, towers=tuple(sorted(model.towers, key=lambda tower: "projectors" in tower.path)))
    with pytest.raises(UserError, match=r"propagate=dense prunes tower connector\S* .* before language"):
        ecoflap.prune(model, data=data, sparsity=0.5, pruner=ecoflap.Wanda(refine="swaps"))
