"""The published allocations on a toy that their own code has run on, see ``golden.py``."""

from __future__ import annotations

import pytest

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.alpha_pruning import AlphaPruning
from ecoflap.allocate.atp import ATP
from ecoflap.allocate.dlp import DLP
from ecoflap.allocate.er import ER
from ecoflap.allocate.lsa import LSA
from ecoflap.allocate.multiflow import Multiflow
from ecoflap.allocate.owl import OWL
from ecoflap.allocate.protocol import Allocator, Context
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.magnitude import Magnitude
from ecoflap.prune.wanda import Wanda
from tests.allocate import golden
from tests.allocate.toy import BLOCKS, calibration, toy

pytestmark = pytest.mark.any_release

LAYERS = 6


@pytest.fixture(scope="module")
def model() -> PrunableModel:
    return toy()


def allocated(model: PrunableModel, allocator: Allocator, sparsity: float) -> Allocation:
    return allocator(model, None, sparsity, Context(Wanda(), calibration(), 2, 0))


def check_blocks(model: PrunableModel, allocation: Allocation, shares: list[float]) -> None:
    """The layers of each block keep its share, up to two weights of rounding."""
    for block, share in zip(model.blocks, shares, strict=True):
        for layer in block.layers:
            assert abs(allocation.keep[layer.name] - share * layer.size) <= 2


def check_layers(allocation: Allocation, sparsities: list[float]) -> None:
    for (name, kept), sparsity in zip(allocation.keep.items(), sparsities, strict=True):
        assert abs(kept - (1 - sparsity) * allocation.sizes[name]) <= 2


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_owl(model: PrunableModel, sparsity: float) -> None:
    allocation = allocated(model, OWL(), sparsity)
    assert list(allocation.details["values"].values()) == pytest.approx(golden.OWL_OUTLIERS, rel=1e-6)
    check_blocks(model, allocation, golden.OWL_KEEP[sparsity])


def test_dlp(model: PrunableModel) -> None:
    check_blocks(model, allocated(model, DLP(average="mean"), 0.7), golden.DLP_MEAN_KEEP[0.7])
    check_blocks(model, allocated(model, DLP(), 0.7), golden.DLP_MEDIAN_KEEP[0.7])


@pytest.mark.parametrize(("sparsity", "columns"), golden.LSA_KEEP)
def test_lsa_by_block(model: PrunableModel, sparsity: float, columns: int) -> None:
    allocation = allocated(model, LSA(columns=columns), sparsity)
    check_blocks(model, allocation, golden.LSA_KEEP[sparsity, columns])


@pytest.mark.parametrize("granularity", golden.LSA_SPARSITY)
def test_lsa_by_layer(model: PrunableModel, granularity: str) -> None:
    allocation = allocated(model, LSA(granularity, columns=8), 0.7)
    check_layers(allocation, golden.LSA_SPARSITY[granularity])
    assert allocation.granularity == "layer"


def test_atp(model: PrunableModel) -> None:
    allocation = ATP(beta=0.03)(model, None, 0.7)
    check_blocks(model, allocation, [1 - sparsity for sparsity in golden.ATP_SPARSITY])


@pytest.mark.parametrize("sparsity", golden.ER_SPARSITY)
def test_er(model: PrunableModel, sparsity: float) -> None:
    check_layers(ER()(model, None, sparsity), golden.ER_SPARSITY[sparsity] * BLOCKS)


@pytest.mark.parametrize("sparsity", golden.MULTIFLOW_SPARSITY)
def test_multiflow(model: PrunableModel, sparsity: float) -> None:
    check_layers(Multiflow()(model, None, sparsity), golden.MULTIFLOW_SPARSITY[sparsity])


@pytest.mark.parametrize("tail", golden.ALPHA)
def test_alpha_pruning(model: PrunableModel, tail: str) -> None:
    allocation = allocated(model, AlphaPruning(tail=tail), 0.7)
    exponents = golden.ALPHA[tail]
    means = [sum(exponents[start : start + LAYERS]) / LAYERS for start in range(0, len(exponents), LAYERS)]
    assert list(allocation.details["values"].values()) == pytest.approx(means, rel=1e-4)
    check_blocks(model, allocation, [1 - sparsity for sparsity in golden.ALPHA_SPARSITY[tail]])


def test_alpha_pruning_moves_further_from_a_pruner_without_data(model: PrunableModel) -> None:
    found = AlphaPruning()(model, None, 0.7, Context(Magnitude(), None, 2, 0))
    assert found.details["epsilon"] == 0.3
    assert AlphaPruning()(model, None, 0.7).details["epsilon"] == 0.2


@pytest.mark.parametrize(
    ("sparsity", "spread"), [(0.05, 0.06), (0.1, 0.06), (0.5, 0.04), (0.65, 0.125), (0.7, 0.15), (0.9, 0.12)]
)
def test_the_published_spreads_of_dlp_and_lsa(model: PrunableModel, sparsity: float, spread: float) -> None:
    for allocator in (DLP(), LSA()):
        assert allocated(model, allocator, sparsity).details["spread"] == pytest.approx(spread)
