"""The inputs that blocks are pruned at: from which predecessors, in which order of blocks, and what is
measured of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ecoflap.blocks.capture import Flow, flows
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.statistics import Gram, InputsComplete, InputStatistics, MeanSquare
from ecoflap.console.progress import track
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel, quiet_forward
from ecoflap.models.core.towers import Tower

PROPAGATE = ("pruned", "dense")


def check_propagate(choice: str) -> None:
    """Refuse a choice that there isn't.

    Raises:
        UserError: it is neither ``pruned`` nor ``dense``.
    """
    if choice not in PROPAGATE:
        raise UserError(f"propagate={choice} is not known; choose {' or '.join(PROPAGATE)}")


def blocks_in_order(
    model: PrunableModel, towers: Iterable[Tower], batches: Sequence[Batch], dense: bool
) -> Iterator[tuple[Flow, int]]:
    """Every block of the towers, with the flow of its tower.

    Raises:
        UserError: with ``dense``, blocks would be pruned before others that read what they put out.
    """
    for flow in flows(model, towers, batches, dense):
        order = range(len(flow.tower.blocks))
        if dense and flow.from_start and flow.structure is not None and flow.structure.backwards:
            raise UserError(
                f"propagate=dense prunes the last blocks of tower {flow.tower.name} ({flow.tower.path})"
                " first, and the model runs some of them before earlier ones; use propagate=pruned, or leave"
                " the tower out of towers"
            )
        # Where a block's inputs come from a forward pass through the blocks before it, those are to be dense
        # still.
        for index in reversed(order) if dense and flow.from_start else order:
            yield flow, index


def measure_block(
    flow: Flow, index: int, kind: type[MeanSquare] | type[Gram] | None, dense: bool
) -> InputStatistics | None:
    """Run the dense block once over all batches and gather what the pruner needs; with ``dense``, its outputs
    are the next block's inputs.
    """
    streams, block = flow.streams, flow.tower.blocks[index]
    if kind is None or not block.layers:
        if dense:
            flow.leave(index)
        return None
    statistics = InputStatistics(kind)
    with statistics.gathering(block.layers, stop=not dense):
        for stream in streams:
            call = stream.call(index)
            statistics.begin_run(stream.counted, call.tensors)
            with suppress(InputsComplete):
                output = call.run(block.module, stream.hidden)
                if dense:
                    stream.leave(output, call)
    return statistics


@torch.no_grad()
def measure_dense(
    model: PrunableModel, calibration: CalibrationSet, batch_size: int, checked: bool = False
) -> dict[str, Tensor]:
    """{layer: sum of squares of each input column, and the number of tokens, [cols + 1], fp64} of the dense
    model.

    It takes one pass over the data. For ``checked`` see ``prune``.
    """
    found: dict[str, Tensor] = {}
    batches = calibration.batches(batch_size)
    if not checked:
        require_calls(model, batches, every_layer=True)
    towers = [tower for tower in model.towers if tower.layers]
    work = blocks_in_order(model, towers, batches, dense=False)  # nothing is pruned on the way
    with quiet_forward(model.module):
        for flow, index in track(work, "statistics", total=sum(len(tower.blocks) for tower in towers)):
            flow.enter(index)
            if (statistics := measure_block(flow, index, MeanSquare, dense=True)) is not None:
                for layer in flow.tower.blocks[index].layers:
                    statistic = statistics[layer]
                    assert isinstance(statistic, MeanSquare)
                    found[layer.name] = statistic.kept()
    return found
