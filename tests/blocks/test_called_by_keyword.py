"""Layers that a model calls by keyword are measured, scored, pruned and trained as those that it calls by
position.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ecoflap.finetune.job import Job
from ecoflap.finetune.lora import Lora
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.driver import prune
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.score.first_order import FirstOrder
from ecoflap.score.protocol import Scorer
from ecoflap.score.zeroth_order import ZerothOrder
from tests import tiny
from tests.prune.test_families import uneven

pytestmark = pytest.mark.skipif("llama" not in tiny.FAMILIES, reason="no llama in this transformers")


class Mlp(nn.Module):
    """LLaMA's, but that it calls its layers by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act_fn(self.gate_proj(input=x)) * self.up_proj(input=x)
        output: Tensor = self.down_proj(input=hidden)
        return output


class Head(nn.Linear):
    """Is called by keyword."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return super().__call__(input=inputs)


def by_keyword() -> PrunableModel:
    model = tiny.build("llama")
    for block in model.blocks:
        block.module.mlp.__class__ = Mlp
    model.module.lm_head.__class__ = Head
    return model


@pytest.mark.parametrize("propagate", ["pruned", "dense", "layer", "compensated"])
def test_they_are_pruned_the_same(propagate: str) -> None:
    model, plain, samples = by_keyword(), tiny.build("llama"), tiny.samples("llama")
    pruner = Wanda() if propagate == "dense" else SparseGPT()
    for one in (model, plain):
        prune(one, samples, pruner, uneven(one), 2, propagate=propagate)
    for layer, expected in zip(model.layers, plain.layers, strict=True):
        assert torch.equal(layer.weight, expected.weight), layer.name


@pytest.mark.parametrize(
    "scorer",
    [ZerothOrder(batch_size=2), ZerothOrder(batch_size=2, samples_per_pass=1024), FirstOrder(batch_size=2)],
)
def test_they_score_the_same(scorer: Scorer) -> None:
    found, expected = (scorer(one, tiny.samples("llama"), 0) for one in (by_keyword(), tiny.build("llama")))
    assert found.importance == expected.importance


def test_they_are_trained_the_same(tmp_path: Path) -> None:
    model, plain, samples = by_keyword(), tiny.build("llama"), tiny.samples("llama")
    lora = Lora(data="calibration", epochs=1, batch_size=3, rank=2)
    for one in (model, plain):
        masks = {layer.name: torch.ones_like(layer.weight, dtype=torch.bool) for layer in one.layers}
        lora.finetune(Job(one, masks, None, samples, by_keyword, 2, 0, tmp_path))
    for layer, expected in zip(model.layers, plain.layers, strict=True):
        assert torch.equal(layer.weight, expected.weight), layer.name
