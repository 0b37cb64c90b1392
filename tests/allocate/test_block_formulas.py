"""What single allocators make of the values of blocks: AlphaPruning, ATP and LSA."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from ecoflap.allocate.alpha_pruning import AlphaPruning
from ecoflap.allocate.atp import ATP
from ecoflap.allocate.groups import blocks_of
from ecoflap.allocate.lsa import LSA
from ecoflap.allocate.protocol import Context
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import eigenvalues, tail_exponent
from tests import tiny

pytestmark = [pytest.mark.any_release, pytest.mark.long]


def test_a_block_without_a_spectrum_counts_as_the_mean_of_the_others() -> None:
    """Of two blocks, both are then as sparse."""
    model = tiny.build("llama")
    for layer in model.blocks[0].layers:
        layer.write(torch.zeros(layer.shape))
    keep = AlphaPruning(epsilon=0.3)(model, None, 0.7).keep
    assert all(abs(count - 0.3 * model.sizes[name]) <= 1 for name, count in keep.items())


def test_a_block_without_a_value_has_the_mean_alpha(model: PrunableModel) -> None:
    blocks = blocks_of(model.towers)
    values = {block.name: float(place**2) for place, block in enumerate(blocks[1:])}
    filled = {blocks[0].name: sum(values.values()) / len(values), **values}
    found, expected = (
        AlphaPruning().counts(model.towers, one, sum(model.sizes.values()) // 2, 0.3)
        for one in (values, filled)
    )
    assert found == expected


def test_a_layer_of_zeros_does_not_count_in_the_alpha_of_its_block() -> None:
    model = tiny.build("llama")
    zeros, *others = model.blocks[0].layers
    zeros.write(torch.zeros(zeros.shape))
    alphas = [tail_exponent(eigenvalues(layer.matrix()), "peak") for layer in others]
    found = AlphaPruning().measure_block(model.blocks[0], None)
    assert found == {model.blocks[0].name: pytest.approx(sum(alphas) / len(alphas))}


def test_alpha_pruning_removes_in_proportion_to_what_unequal_blocks_have(model: PrunableModel) -> None:
    """With u from 0 to 1, the sparsity of a block is c (1 - epsilon + 2 epsilon u)."""
    blocks = blocks_of(model.towers)
    sizes = [sum(layer.size for layer in block.layers) for block in blocks]
    assert len(set(sizes)) > 2
    alphas = [3.0 + place for place in range(len(blocks))]
    values = {block.name: alpha for block, alpha in zip(blocks, alphas, strict=True)}
    keep = AlphaPruning().counts(model.towers, values, sum(sizes) * 2 // 5, 0.3)
    ratios = [
        (1 - sum(keep[layer.name] for layer in block.layers) / size) / (0.7 + 0.6 * place / (len(blocks) - 1))
        for place, (block, size) in enumerate(zip(blocks, sizes, strict=True))
    ]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), abs=0.01)


@pytest.mark.parametrize(("sparsity", "reach"), [(0.3, 0.6), (0.8, 0.4)])
@pytest.mark.parametrize("scope", ["tower", "model"])
def test_the_last_beta_leaves_the_first_or_the_last_block_at_the_end(
    model: PrunableModel, scope: str, sparsity: float, reach: float
) -> None:
    """Sparsities go from s - reach / 2 to s + reach / 2 in the longest part, within 0 to 1."""
    numbers = [len(blocks_of([tower])) for tower in model.towers]
    steps = (sum(numbers) if scope == "model" else max(numbers)) - 1
    tried = ATP(scope=scope).candidates(model, sparsity)
    assert tried == pytest.approx([place / 10 * reach / steps for place in range(11)], abs=1e-6)


def test_sublayers_are_attention_and_the_rest(model: PrunableModel, context: Context) -> None:
    block = next(tower for tower in model.towers if tower.name == "decoder").blocks[0]
    halves = LSA("sublayer")._groups(block)
    names = [{layer.name.removeprefix(f"{block.name}.layer.")[0] for layer in half} for half in halves]
    assert names == [{"0", "1"}, {"2"}]


class Named(NamedTuple):
    """A layer."""

    name: str


def test_the_path_of_a_block_makes_no_layer_attention() -> None:
    names = ["attention_stack.0.self_attn.q", "attention_stack.0.mlp.up"]
    block = SimpleNamespace(name="attention_stack.0", layers=[Named(name) for name in names])
    halves = LSA("sublayer")._groups(block)  # type: ignore[arg-type]
    assert [[layer.name for layer in half] for half in halves] == [[name] for name in names]


def test_a_small_layer_moves_further_for_the_same_error() -> None:
    """As published, a layer of few weights moves by as many weights as a large one."""
    from ecoflap.allocate.lsa import _shares

    assert _shares([10, 30], [0.0, 1.0], 0.1) == pytest.approx([0.2, -0.2 / 3])
    assert _shares([10, 30], [2.0, 2.0], 0.1) == [0, 0]


def test_the_value_of_a_block_is_the_mean_error_of_however_many_layers() -> None:
    layers = [SimpleNamespace(name=name) for name in "abc"]
    errors = {"a": 1.0, "b": 2.0, "c": 6.0}
    assert LSA().value_of(SimpleNamespace(layers=layers), errors) == -3.0  # type: ignore[arg-type]
    assert LSA().value_of(SimpleNamespace(layers=layers[:2]), errors) == -1.5  # type: ignore[arg-type]
