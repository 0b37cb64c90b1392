"""The inputs that blocks are pruned at: from pruned or from dense predecessors, and what is measured of dense
ones for several runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.statistics import MeanSquare, Statistic
from ecoflap.blocks.walk import walk
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel, quiet_forward

PROPAGATE = ("pruned", "dense")


def check_propagate(choice: str) -> None:
    """Refuse a choice that there isn't.

    Raises:
        UserError: it is neither ``pruned`` nor ``dense``.
    """
    if choice not in PROPAGATE:
        raise UserError(f"propagate={choice} is not known; choose {' or '.join(PROPAGATE)}")


@torch.no_grad()
def measure_dense(
    model: PrunableModel,
    calibration: CalibrationSet,
    batch_size: int,
    checked: bool = False,
    statistic: type[Statistic] = MeanSquare,
) -> dict[str, Tensor]:
    """{layer: sums of a storable statistic and the number of tokens, [cols + 1], fp64} of the dense model.

    It takes one pass over the data. For ``checked`` see ``prune``.
    """
    found: dict[str, Tensor] = {}
    batches = calibration.batches(batch_size)
    if not checked:
        require_calls(model, batches, every_layer=True)
    with quiet_forward(model.module):
        for visit in walk(model, model.towers, batches, "statistics"):
            if (statistics := visit.measure(statistic, leave=True)) is not None:
                found |= {layer.name: statistics[layer].kept() for layer in visit.block.layers}
    return found
