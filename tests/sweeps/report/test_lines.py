"""What is said of a model whose blocks hold much that can't be pruned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable
from ecoflap.run.show import show_model


class Experts(nn.Module):
    """Weights of several experts in one tensor, [experts, 4, 4]."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(number, 4, 4))


class Block(nn.Module):
    """Two layers of 16 weights, a router, and experts of 16 weights each."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.router, self.experts = nn.Linear(4, 1), Experts(experts)


def mixture(experts: int, selection: Selection | None = None) -> PrunableModel:
    """Two blocks, and 200 other weights in an embedding."""
    module = nn.Module()
    module.embedding, module.layers = nn.Embedding(50, 4), nn.ModuleList([Block(experts), Block(experts)])
    return prunable("mixture", module, None, lambda *_: torch.zeros(1), selection or Selection())


def test_weights_of_the_blocks_are_counted_with_what_stays_dense_in_them() -> None:
    model = mixture(3)
    assert model.dense_in_blocks() == {"experts in one 3-D tensor": 2 * 48, "router": 2 * 4}
    assert model.block_weights() == 2 * (32 + 48 + 4)


def test_layers_that_were_asked_to_stay_dense_are_not_counted() -> None:
    model = mixture(1, Selection(skip_layers=["first"]))
    assert model.dense_in_blocks() == {"experts in one 3-D tensor": 2 * 16, "router": 2 * 4}
    assert model.block_weights() == 2 * (16 + 16 + 4)


def test_a_mixture_whose_experts_stay_dense_is_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    model = mixture(3)
    show_model(model, 0.5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    biases = 2 * (4 + 4 + 1)
    assert (
        record.message
        == f"only {100 * 64 / 168:.1f} % of the weights in the blocks can be pruned (most of the rest, 96"
        f" weights: experts in one 3-D tensor); sparsity=0.5 removes {100 * 32 / (200 + 168 + biases):.1f}"
        " % of the model's weights"
    )


def test_nothing_is_said_where_little_stays_dense(caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Module()
    module.embedding, module.layers = (
        nn.Embedding(50, 40),
        nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))]),
    )
    show_model(prunable("dense", module, None, lambda *_: torch.zeros(1), Selection()), 0.5)
    assert not caplog.records
