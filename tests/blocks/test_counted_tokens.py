"""Which of the tokens that a layer reads count in its statistics: those of a mask, where it fits them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks.gram import Gram
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.statistics import MeanSquare
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.losses import counted_tokens, counting


class Routed(nn.Module):
    """A layer that reads all tokens, and an expert that reads them in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.experts = nn.ModuleList([nn.Linear(2, 2)])
        self.merged = nn.Linear(4, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, features] -> the same."""
        self.experts[0](hidden.flatten(0, 1).flip(0))
        self.merged(hidden.flatten(1).unflatten(1, (-1, 4)))
        self.first(hidden.transpose(0, 1))
        output: Tensor = self.first(hidden.flatten(0, 1)).view_as(hidden)
        return output


@torch.no_grad()
def test_masks_are_never_put_on_other_tokens() -> None:
    """Flat rows are the tokens in their order; of selected, merged and transposed ones, all count."""
    module = Routed()
    names = {"first": module.first, "experts.0.": module.experts[0], "merged": module.merged}
    layers = [Layer(name, one) for name, one in names.items()]
    hidden = torch.arange(8.0).view(1, 4, 2)
    mask, statistics = torch.tensor([[True, False, False, True]]), InputStatistics(MeanSquare)
    with statistics.gathering(layers):
        statistics.begin_run((mask,), [])
        module(hidden)
    assert [statistics[layer].tokens for layer in layers] == [4 + 2, 4, 2]
    flat = InputStatistics(Gram)
    with flat.gathering(layers[:1]):
        flat.begin_run((mask,), [])
        module.first(hidden.flatten(0, 1))
    kept = hidden[0][mask[0]]
    torch.testing.assert_close(flat[layers[0]].value, kept.t() @ kept / 2)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 4), (8,), (1, 8)])
def test_a_mask_is_put_on_the_tokens_of_all_samples_in_a_row(shape: tuple[int, ...]) -> None:
    layer, statistics = Layer("first", nn.Linear(2, 2)), InputStatistics(MeanSquare)
    hidden = torch.arange(16.0).view(*shape, 2)
    mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    with statistics.gathering([layer]):
        statistics.begin_run((mask,), [])
        layer.module(hidden)
    kept = hidden.view(8, 2)[mask.flatten()]
    assert statistics[layer].tokens == 3
    torch.testing.assert_close(statistics[layer].value, kept.square().mean(dim=0))


@torch.no_grad()
def test_the_mask_of_a_tower_says_nothing_of_another_sequence_of_its_length() -> None:
    layers = [Layer(name, nn.Linear(2, 2)) for name in ("own", "across")]
    hidden, states = torch.randn(2, 1, 3, 2)
    mask, statistics = torch.tensor([[True, False, True]]), InputStatistics(MeanSquare)
    with statistics.gathering(layers):
        statistics.begin_run((mask,), [states])
        for layer, read in zip(layers, (hidden, states), strict=True):
            layer.module(read)
    assert [statistics[layer].tokens for layer in layers] == [2, 3]


def test_a_mask_for_towers_of_one_kind_says_nothing_of_others() -> None:
    shared, patches = torch.ones(1, 3), torch.tensor([[1, 0]])
    with counting(shared, vision=patches):
        assert [one.tolist() for one in counted_tokens("vision")] == [[[True] * 3], [[True, False]]]
        for kind in ("language", None):
            assert [one.tolist() for one in counted_tokens(kind)] == [[[True] * 3]]
        with counting():
            assert counted_tokens("vision") == ()


def test_a_layer_without_tokens_that_count_is_refused() -> None:
    layer, statistics = Layer("first", nn.Linear(2, 2)), InputStatistics(MeanSquare)
    with statistics.gathering([layer]):
        statistics.begin_run((torch.zeros(1, 3, dtype=torch.bool),), [])
        layer.module(torch.ones(1, 3, 2))
    with pytest.raises(UserError, match="first reads none of the tokens that count"):
        statistics[layer]
