"""What each step will need of memory at a time: said when the model and the data are known, before anything
is computed for long.

The activations are measured on one sample, the largest, and multiplied; weights, hidden states and statistics
are counted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ecoflap.blocks.footprint import Footprint
from ecoflap.console.progress import table
from ecoflap.console.telemetry import free_memory
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import AT_A_TIME, block_bytes, bytes_outside
from ecoflap.prune.protocol import Pruner
from ecoflap.run.steps.sample_cost import WIDE, SampleCost
from ecoflap.score.pass_size import ENOUGH
from ecoflap.score.protocol import Scorer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Need:
    """Bytes that a step needs on the device.

    Attributes:
        step: its name.
        weights: in use at a time.
        states: hidden states and block outputs that are kept.
        work: activations of one pass, gradients, statistics.
        elsewhere: hidden states that wait on the CPU or the disk.
        wide: the weights are held in fp32, whatever the model's dtype.
    """

    step: str
    weights: int
    states: int
    work: int
    elsewhere: int = 0
    wide: bool = False

    @property
    def total(self) -> int:
        """On the device altogether."""
        return self.weights + self.states + self.work


def memory_plan(
    model: PrunableModel,
    cost: SampleCost,
    samples: int,
    batch_size: int,
    scorer: Scorer | None,
    pruner: Pruner,
) -> list[Need]:
    """What scoring and pruning will need.

    Args:
        model: loaded.
        cost: of one sample.
        samples: in the calibration set.
        batch_size: of the fine stage.
        scorer: null where nothing is scored.
        pruner: of layers, or of a whole model.
    """
    scoring = [] if scorer is None else [("score", scorer.footprint, scorer.batch_size)]
    return [
        _need(model, step, footprint, cost, samples, min(size, samples))
        for step, footprint, size in [*scoring, ("prune", pruner.footprint, batch_size)]
    ]


def _need(
    model: PrunableModel, step: str, footprint: Footprint, cost: SampleCost, samples: int, batch: int
) -> Need:
    """What a step needs that runs batches of so many samples."""
    wide = footprint.float32
    weights, cost = weights_in_use(model, WIDE if wide else 1), cost.in_float32(model) if wide else cost
    held = _held(model, footprint)
    if footprint.passes == "blocks":
        waiting, work = samples * cost.states, batch * cost.block + held
        if model.placement.kind == "none":
            return Need(step, weights, waiting, work, wide=wide)
        return Need(step, weights, batch * cost.states, work, waiting, wide)
    if footprint.passes == "backward":
        work = batch * 2 * max(cost.forward, cost.block)
    else:
        pair, pairs = 2 * batch * cost.forward, max(1, footprint.samples_per_pass // (2 * batch))
        work = min(pairs * pair, max(pair, ENOUGH))
    return Need(step, weights, batch * cost.outputs, work + held, wide=wide)


def _held(model: PrunableModel, footprint: Footprint) -> int:
    """Bytes beside the activations: statistics, and copies of layers."""
    statistics = 0
    if footprint.statistic is not None:
        columns = [[layer.shape[1] for layer in block.layers] for block in model.blocks if block.layers]
        statistics = max(map(footprint.statistic.size_of, columns))
    copies = footprint.copies if model.device.type == "cpu" else 0
    sizes = [layer.size for layer in model.layers]
    return statistics + WIDE * (footprint.layers * max(sizes) + copies * sum(sizes))


def weights_in_use(model: PrunableModel, width: int = 1) -> int:
    """Bytes of the weights that are on the device at a time, at ``width`` bytes a number or their own, if
    that is more.
    """
    blocks = block_bytes(model.blocks, width)
    inside = sum(blocks) if model.placement.kind == "none" else AT_A_TIME * max(blocks)
    return bytes_outside(model.module, model.blocks, width) + inside


def show_needs(model: PrunableModel, needs: Sequence[Need]) -> None:
    """Print the plan; warn where it doesn't fit, and say which option helps."""
    free, kind = free_memory(model.device), model.placement.kind
    away = [] if kind == "none" else [f"waiting on {kind}"]
    rows = [
        (
            need.step,
            *map(
                megabytes,
                (need.weights, need.states, need.work, need.total, *([need.elsewhere] if away else [])),
            ),
        )
        for need in needs
    ]
    columns = ["step", "weights", "hidden states", "one pass", "altogether", *away]
    table(
        f"memory at a time, about, on {model.device} ({megabytes(free)} free beside the loaded weights)",
        columns,
        rows,
    )
    held = weights_in_use(model) if kind == "none" else 0  # loaded by now
    for need in needs:
        if need.total - held > free:
            log.warning(
                "%s may need %s and there are %s free: %s",
                need.step,
                megabytes(need.total - held),
                megabytes(free),
                what_helps(need, kind),
            )


def what_helps(need: Need, kind: str) -> str:
    """The option that lowers the largest part of what a step needs."""
    parts = {
        need.work: f"use a smaller {'score.' if need.step == 'score' else ''}batch_size",
        need.states: "use fewer samples, or a smaller score.batch_size"
        if need.step == "score"
        else "use runtime.offload=cpu, or fewer samples",
        need.weights: (
            "use score=first_order, which needs no fp32 copy" if need.wide else "use model.dtype=bfloat16"
        )
        + ("" if kind == "disk" else f", or runtime.offload={'cpu' if kind == 'none' else 'disk'}"),
    }
    return parts[max(parts)]


def megabytes(size: int) -> str:
    """For people."""
    return f"{size / 2**20:,.1f} MiB"
