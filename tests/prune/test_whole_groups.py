"""Masks n:m, of which each layer has an n of its own."""

from dataclasses import replace

import pytest
import torch

from ecoflap.allocate.allocation import EXACT, GROUPS, Allocation
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.gram import Gram
from ecoflap.errors import UserError
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.masks import MaskRule
from ecoflap.prune.ria import RIA
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from ecoflap.prune.whole_groups import in_whole_groups
from tests import tiny

from .test_families import uneven

pytestmark = pytest.mark.any_release

RULE = MaskRule.parse("n:4", ("row",))


def allocation(keep: list[int], sizes: list[int]) -> Allocation:
    names = [f"layer {place}" for place in range(len(keep))]
    return Allocation(dict(zip(names, keep, strict=True)), dict(zip(names, sizes, strict=True)), 0.5, "layer")


@pytest.mark.parametrize(
    ("keep", "sizes", "expected"),
    [
        ([50, 50], [100, 100], [50, 50]),  # 2 and 2
        ([60, 40], [100, 100], [50, 50]),  # 2.4 and 1.6: the larger remainder goes up
        ([70, 30], [100, 100], [75, 25]),  # 2.8 and 1.2
        ([99, 100], [100, 100], [75, 100]),  # 3.96 can't go up within the sum
        ([60, 40, 40], [100, 100, 40], [50, 50, 40]),
        ([5, 195], [100, 200], [25, 150]),  # a layer that keeps anything keeps one of four
        ([13, 137, 32], [16, 160, 400], [16, 40, 100]),  # the last one takes so much that others lose several
        ([62, 70, 28], [80, 80, 320], [40, 40, 80]),  # two have to lose one of four: each loses one, none two
        ([5, 55, 60], [100, 100, 100], [25, 25, 50]),  # 0.2, 2.2 and 2.4: the second has lost less
        ([0, 100], [100, 100], [0, 100]),
        ([100, 200], [100, 200], [100, 200]),
    ],
)
def test_rounded(keep: list[int], sizes: list[int], expected: list[int]) -> None:
    rounded = in_whole_groups(allocation(keep, sizes), 4)
    assert list(rounded.keep.values()) == expected
    assert sum(expected) <= sum(keep)
    assert rounded.total == (EXACT if expected == keep else GROUPS)
    assert in_whole_groups(rounded, 4).keep == rounded.keep


def test_counts_that_need_not_meet_the_target_are_recorded_as_such() -> None:
    given = replace(allocation([60, 80], [100, 100]), total="as_given")
    rounded = in_whole_groups(given, 4)
    assert list(rounded.keep.values()) == [50, 75]
    assert rounded.total == "as_given"


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_is_missed_by_less_than_one_weight_per_group(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [int(size) * 8 for size in torch.randint(1, 50, (12,), generator=generator)]
    shares = torch.rand(12, generator=generator)
    keep = [max(size // 8, int(size * share)) for size, share in zip(sizes, shares, strict=True)]
    rounded = in_whole_groups(allocation(keep, sizes), 8)
    assert all(count * 8 % size == 0 for count, size in zip(rounded.keep.values(), sizes, strict=True))
    missing = sum(keep) - sum(rounded.keep.values())
    below = [
        size // 8
        for given, size, kept in zip(keep, sizes, rounded.keep.values(), strict=True)
        if kept < given
    ]
    assert 0 <= missing < min(below, default=1)
    for before, after, size in zip(keep, rounded.keep.values(), sizes, strict=True):
        assert abs(before - after) < size // 8


def test_nothing_that_fits_is_left_where_layers_were_below_one_weight_per_group() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        sizes = [int(size) * 4 for size in torch.randint(4, 100, (3,), generator=generator)]
        keep = [
            int(size * share)
            for size, share in zip(sizes, torch.rand(3, generator=generator) ** 2, strict=True)
        ]
        if sum(keep) < sum(size // 4 for size, given in zip(sizes, keep, strict=True) if given):
            continue
        found = list(in_whole_groups(allocation(keep, sizes), 4).keep.values())
        missing = sum(keep) - sum(found)
        assert missing >= 0
        assert all(
            kept >= given or size // 4 > missing for kept, given, size in zip(found, keep, sizes, strict=True)
        )


def test_too_little_for_one_weight_per_group() -> None:
    with pytest.raises(
        UserError, match=r"pruner\.mask=n:4 keeps at least one of every 4 .* 50 weights in all"
    ):
        in_whole_groups(allocation([10, 20], [100, 100]), 4)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.6, 0.75])
def test_any_sparsity_up_to_one_of_m(sparsity: float) -> None:
    RULE.check(sparsity, uneven=True)
    with pytest.raises(UserError, match=r"pruner\.mask=n:4 .* set at most sparsity=0\.75"):
        RULE.check(0.76, uneven=False)


def test_counts_that_are_no_whole_groups() -> None:
    assert RULE.pattern(400, 100) == (1, 4)
    assert RULE.pattern(400, 400) == (4, 4)
    assert RULE.pattern(400, 0) == "matrix"  # all the same, as nothing stays
    with pytest.raises(ValueError, match="asked to keep 150 of 400"):
        RULE.pattern(400, 150)
    assert RULE.fitted(allocation([60, 40], [100, 100])).keep == {"layer 0": 50, "layer 1": 50}
    same = allocation([60, 40], [100, 100])
    assert MaskRule.parse("row", ("row",)).fitted(same) is same
    with pytest.raises(UserError, match="keeps 50 of the 100 weights of layer 0, and the allocation says 60"):
        MaskRule.parse("2:4", ("row",)).fitted(same)


@pytest.mark.parametrize("pruner", [Magnitude, Wanda, RIA, SparseGPT, ADMM])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_pruner_keeps_n_of_every_group(family: str, pruner: type) -> None:
    model, built = tiny.build(family), pruner(mask="n:4")
    wanted = uneven(model, 0.6)
    counts = built.fitted(wanted)
    report = prune(model, tiny.samples(family), built, counts, 2)
    chosen = set()
    for layer in model.layers:
        mask = layer.oriented(report.masks[layer.name])
        n = counts.keep[layer.name] * 4 // layer.size
        chosen.add(n)
        assert torch.all(mask.reshape(layer.shape[0], -1, 4).sum(dim=2) == n)
        assert not layer.matrix()[~mask].any()
    assert len(chosen) > 1
    assert counts.sparsity >= wanted.sparsity


@pytest.mark.parametrize("pruner", [SparseGPT, ADMM])
def test_layers_with_an_n_of_their_own_share_an_input(pruner: type) -> None:
    """One of them keeps nothing, and so has no groups."""
    statistic, weights = Gram(8, torch.device("cpu")), [torch.randn(rows, 8) for rows in (3, 4, 5, 6)]
    statistic.update(torch.randn(50, 8))
    keeps = [6, 0, 20, 36]
    masks = [one.mask for one in pruner(mask="n:4").together(weights, statistic, keeps)]
    assert [int(mask.sum()) for mask in masks] == keeps
    for n, mask in zip((1, 0, 2, 3), masks, strict=True):
        assert torch.all(mask.reshape(-1, 4).sum(dim=1) == n)


def test_columns_that_m_does_not_divide() -> None:
    with pytest.raises(UserError, match=r"n:5: .* columns, which 5 does not divide"):
        MaskRule.parse("n:5", ()).check_layers(tiny.build("gpt2").layers)
    model = tiny.build("gpt2")
    uniform = WaterFilling()(model, None, 0.6)
    assert RULE.fitted(uniform).sparsity == pytest.approx(0.6, abs=0.05)
