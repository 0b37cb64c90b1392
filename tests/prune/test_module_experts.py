"""Experts that are modules of their own, one of which the pruned model sends no token."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ecoflap.allocate.allocation import Allocation
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.prune.driver import prune
from ecoflap.prune.finished_blocks import FinishedBlocks
from ecoflap.prune.inputs import require_capture
from ecoflap.prune.protocol import LayerPruner
from ecoflap.prune.sparsegpt import SparseGPT
from ecoflap.prune.wanda import Wanda
from tests.prune import reference
from tests.stack import stack

pytestmark = pytest.mark.any_release
STARVED = ["blocks.1.experts.0.up.weight", "blocks.1.experts.0.down.weight"]


class Flip(nn.Module):
    """Turns the sign of the last features, unless it is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.flip = nn.Linear(8, 8, bias=False)
        self.flip.weight.data = torch.diag(torch.tensor([0.0] * 4 + [-3.0] * 4))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.flip(hidden)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.up(hidden).relu())


class Mixture(nn.Module):
    """Sends each token to the expert of its sum's sign."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        output, chosen = hidden.clone(), (hidden.sum(dim=2) > 0).long()
        for number, expert in enumerate(self.experts):
            if bool((chosen == number).any()):
                output[chosen == number] += expert(hidden[chosen == number])
        return output


def model_and_data() -> tuple[PrunableModel, CalibrationSet]:
    """A model that sends a token of large last features to expert 0 of its second block while it is dense."""
    rows = torch.rand(4, 5, 8, generator=torch.Generator().manual_seed(1)) + 0.1
    rows[::2, :, 4:] /= 100
    return stack(Flip, Mixture), CalibrationSet("signs", tuple({"x": row} for row in rows))


def without_flip(model: PrunableModel) -> Allocation:
    keep = {layer.name: layer.size // 2 for layer in model.layers}
    return Allocation(keep | {"blocks.0.flip.weight": 0}, model.sizes, 0.5, "layer")


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("propagate", ["pruned", "layer", "compensated"])
@pytest.mark.parametrize("pruner", [Wanda(repair=True), SparseGPT()], ids=["wanda", "sparsegpt"])
def test_an_expert_that_pruning_starves_is_pruned_by_its_weights_alone(
    pruner: LayerPruner, propagate: str, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, calibration = model_and_data()
    require_capture(model, pruner, calibration, size, propagate, "all")  # each expert has tokens
    dense = {layer.name: layer.matrix().clone() for layer in model.layers}
    allocation, finished = without_flip(model), FinishedBlocks(tmp_path, "key")
    with caplog.at_level(logging.WARNING):
        report = prune(model, calibration, pruner, allocation, size, propagate=propagate, finished=finished)
    assert "no calibration token was routed to 2 of 4 matrices of experts" in caplog.text
    by_hand = reference.wanda if isinstance(pruner, Wanda) else reference.sparsegpt
    for name in STARVED:
        expected = by_hand(dense[name], torch.eye(dense[name].shape[1]), allocation.keep[name])[1]
        assert torch.equal(report.masks[name], expected)
        assert report.errors[name] is None
    assert [name for name, tokens in report.tokens.items() if not tokens] == STARVED
    again = model_and_data()[0]
    resumed = prune(again, calibration, pruner, allocation, size, propagate=propagate, finished=finished)
    assert resumed.tokens == report.tokens


def test_an_expert_that_the_dense_model_starves_is_refused() -> None:
    model, calibration = model_and_data()
    with torch.no_grad():
        model.module.get_submodule("blocks.0.flip").weight.zero_()
    with pytest.raises(UserError, match=r"never reach blocks\.1\.experts\.0\.up\.weight and 1 more layers"):
        require_capture(model, Wanda(), calibration, 2, "pruned", "all")
