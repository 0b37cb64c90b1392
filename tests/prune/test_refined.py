"""Masks refined by swaps, and weights repaired, on top of a metric."""

import pytest
import torch

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.water_filling import WaterFilling
from ecoflap.blocks.gram import Gram
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.admm import ADMM
from ecoflap.prune.driver import prune
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.report import PruneReport
from ecoflap.prune.ria import RIA
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests import tiny
from tests.ops import reference

pytestmark = pytest.mark.any_release

METRICS = [Wanda, RIA, Magnitude]


def gathered(kind: type[Statistic], cols: int = 40) -> Statistic:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(cols, cols, generator=generator)
    statistic = kind(cols, torch.device("cpu"))
    statistic.update(torch.randn(200, cols, generator=generator) @ mixing)
    return statistic


def weight_of(rows: int = 12, cols: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def half(model: PrunableModel) -> Allocation:
    return WaterFilling()(model, None, 0.5)


def pruned(pruner: LayerPruner, family: str = "llama") -> tuple[PrunableModel, PruneReport]:
    model = tiny.build(family)
    return model, prune(model, tiny.samples(family), pruner, half(model), 2)


@pytest.mark.parametrize("metric", METRICS)
def test_the_statistic_follows_from_the_options(metric: type) -> None:
    alone = None if metric is Magnitude else MeanSquare
    assert metric().statistic is alone
    assert metric().requires_calibration == (alone is not None)
    for refined in (metric(refine="swaps"), metric(repair=True)):
        assert refined.statistic is Gram
        assert refined.footprint.statistic is Gram


def test_sparsegpt_solves_with_its_options() -> None:
    weight, statistic = weight_of(), gathered(Gram)
    assert isinstance(statistic, Gram)
    pruned = SparseGPT(block=8, damping=0.2)(weight, statistic, 240)
    expected, mask = reference.sparsegpt(weight, statistic.value, [48] * 5, damping=0.2, block=8)
    assert torch.equal(pruned.mask, mask)
    torch.testing.assert_close(pruned.weight, expected.float(), rtol=1e-3, atol=1e-4)


def test_admm_solves_with_its_options() -> None:
    weight, statistic = weight_of(), gathered(Gram)
    assert isinstance(statistic, Gram)
    pruner = ADMM("matrix", iterations=7, schedule=3, relaxation=1.2, damping=0.3, penalty=2.0)
    pruned = pruner(weight, statistic, 240)
    expected, mask = reference.admm(weight, statistic.value, 240, "matrix", 7, 3, 1.2, 0.3, penalty=2.0)
    assert torch.equal(pruned.mask, mask)
    torch.testing.assert_close(pruned.weight, expected.float(), rtol=1e-3, atol=1e-4)


def test_ria_takes_its_power_of_the_norm() -> None:
    weight, statistic = weight_of().abs(), gathered(MeanSquare)
    assert isinstance(statistic, MeanSquare)
    relative = weight / weight.sum(dim=0) + weight / weight.sum(dim=1, keepdim=True)
    for power in (0.0, 0.5, 2.0):
        expected = relative * statistic.value.sqrt() ** power
        assert torch.equal(
            RIA(power=power)(weight, statistic, 200).mask, reference.matrix_mask(expected, 200)
        )


@pytest.mark.parametrize("metric", [Wanda, RIA])
def test_a_gram_matrix_gives_the_mask_of_mean_squares(metric: type) -> None:
    weight = weight_of()
    one, other = (metric()(weight, gathered(kind), 200) for kind in (MeanSquare, Gram))
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mask", ["row", "matrix", "2:4", "n:4"])
def test_swaps_keep_the_rows_counts_and_lower_every_rows_error(metric: type, mask: str) -> None:
    weight, statistic = weight_of(), gathered(Gram)
    assert isinstance(statistic, Gram)
    (before,) = metric(mask=mask).together([weight], statistic, [240])
    (after,) = metric(mask=mask, refine="swaps").together([weight], statistic, [240])
    assert torch.equal(after.weight, weight * after.mask)
    assert torch.equal(after.mask.sum(dim=1), before.mask.sum(dim=1))
    if ":" in mask:
        assert bool((after.mask.view(12, -1, 4).sum(dim=2) == 2).all())
    losses = [reference.row_losses(weight, statistic.value, one.mask) for one in (before, after)]
    assert bool((losses[1] <= losses[0] * (1 + 1e-6)).all())
    assert float(losses[1].sum()) < float(losses[0].sum())
    fewer = metric(mask=mask, refine="swaps", swaps=1).together([weight], statistic, [240])[0].mask
    assert int((fewer & ~before.mask).sum(dim=1).max()) <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_a_layer_alone_is_refined_too(metric: type) -> None:
    weight, statistic, pruner = weight_of(), gathered(Gram), metric(refine="swaps", repair=True)
    alone, (together,) = pruner(weight, statistic, 200), pruner.together([weight], statistic, [200])
    assert torch.equal(alone.mask, together.mask)
    assert torch.equal(alone.weight, together.weight)


def test_layers_that_share_an_input_are_refined_as_if_alone() -> None:
    statistic, weights, keeps = gathered(Gram), [weight_of(), weight_of(5, seed=2)], [240, 60]
    pruner = Wanda(refine="swaps", repair=True)
    for one, weight, keep in zip(pruner.together(weights, statistic, keeps), weights, keeps, strict=True):
        (alone,) = pruner.together([weight], statistic, [keep])
        assert int(one.mask.sum()) == keep
        assert torch.equal(one.mask, alone.mask)
        torch.testing.assert_close(one.weight, alone.weight)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_errors_fall_with_each_refinement(family: str) -> None:
    chain = [Wanda(), Wanda(refine="swaps"), Wanda(refine="swaps", repair=True), ADMM("matrix")]
    models, reports = zip(*(pruned(pruner, family) for pruner in chain), strict=True)
    name = models[0].layers[0].name  # its inputs are the same in every run
    errors = [report.errors[name] for report in reports]
    assert errors[1] < errors[0]  # of which Wanda's is the estimate for uncorrelated columns
    assert errors[2] < errors[1]
    for model, report in zip(models, reports, strict=True):
        for layer in model.layers:
            mask = report.masks[layer.name]
            assert int(mask.sum()) == half(model).keep[layer.name]
            assert not layer.weight[~mask].any()


@pytest.mark.parametrize("metric", METRICS)
def test_repair_keeps_the_mask(metric: type) -> None:
    weight, statistic = weight_of(), gathered(Gram)
    alone = metric()(weight, statistic, 150)
    (repaired,) = metric(repair=True).together([weight], statistic, [150])
    assert torch.equal(alone.mask, repaired.mask)
    assert torch.equal(repaired.weight == 0, ~repaired.mask)
    assert statistic.output_energy(repaired.weight - weight) < statistic.output_energy(alone.weight - weight)


def test_one_inverse_serves_all_solves_of_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    inverse = torch.cholesky_inverse
    monkeypatch.setattr(torch, "cholesky_inverse", lambda matrix: calls.append(1) or inverse(matrix))
    statistic = gathered(Gram)
    for keep in (400, 240, 100):
        ADMM().together([weight_of(), weight_of(5)], statistic, [keep, 50])
    assert len(calls) == 1
    ADMM(damping=0.2)(weight_of(), statistic, 240)
    assert len(calls) == 2
    statistic.update(torch.randn(10, 40))
    ADMM(damping=0.2)(weight_of(), statistic, 240)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"refine": "swap"}, "pruner.refine=swap is not known; did you mean swaps"),
        ({"swaps": 0}, "pruner.swaps=0 must be at least 1"),
        ({"mask": "column"}, "pruner.mask=column is not known"),
    ],
)
def test_impossible_options(arguments: dict, says: str) -> None:
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        Wanda(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"damping": -0.1}, {"penalty": 0.0}, {"relaxation": 0.9}, {"relaxation": 2.0}, {"schedule": 0}],
)
def test_impossible_numbers_of_admm(arguments: dict) -> None:
    with pytest.raises(UserError, match=rf"pruner\.{next(iter(arguments))}="):
        ADMM(**arguments)
    with pytest.raises(UserError, match=r"pruner\.schedule=30 with pruner\.iterations=20"):
        ADMM(iterations=20, schedule=30)
