"""What each step will need of memory at a time: said when the model and the data are known, before anything
is computed for long.

The activations are measured on one sample, the largest, and multiplied; weights, hidden states and statistics
are counted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ecoflap.blocks.statistics import Gram
from ecoflap.console.progress import table
from ecoflap.console.telemetry import free_memory
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import AT_A_TIME, block_bytes, bytes_outside
from ecoflap.prune.whole_model import WholeModelPruner
from ecoflap.run.steps.sample_cost import WIDE, SampleCost
from ecoflap.score.pass_size import ENOUGH

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
    model: PrunableModel, cost: SampleCost, samples: int, batch_size: int, scorer: Any, pruner: Any
) -> list[Need]:
    """What scoring and pruning will need.

    Args:
        model: loaded.
        cost: of one sample.
        samples: in the calibration set.
        batch_size: of the fine stage.
        scorer: null where nothing is scored.
        pruner: one by one layer, or over the whole model.
    """
    scoring = [] if scorer is None else [_scoring(model, cost, samples, scorer)]
    return [*scoring, _pruning(model, cost, samples, batch_size, pruner)]


def _scoring(model: PrunableModel, cost: SampleCost, samples: int, scorer: Any) -> Need:
    batch, largest = min(scorer.batch_size, samples), max(layer.size for layer in model.layers)
    wide = scorer.name == "zeroth_order"
    weights, cost = weights_in_use(model, WIDE if wide else 1), cost.in_float32(model) if wide else cost
    if scorer.name == "first_order" or getattr(scorer, "probe", None) == "derivative":
        # The inputs of all blocks are kept; the logits and their gradient are alive together; one layer's
        # gradient is reduced at a time.
        return Need(
            "score",
            weights,
            batch * cost.outputs,
            batch * 2 * max(cost.forward, cost.block) + 3 * 4 * largest,
            wide=wide,
        )
    if scorer.name == "zeroth_order":
        pair, pairs = 2 * batch * cost.forward, max(1, scorer.samples_per_pass // (2 * batch))
        return Need(
            "score",
            weights,
            batch * cost.outputs,
            min(pairs * pair, max(pair, ENOUGH)) + 4 * largest,
            wide=wide,
        )
    return _waiting(model, "score", cost, samples, batch, 0)


def _pruning(model: PrunableModel, cost: SampleCost, samples: int, batch_size: int, pruner: Any) -> Need:
    largest, batch = max(layer.size for layer in model.layers), min(batch_size, samples)
    if isinstance(
        pruner, WholeModelPruner
    ):  # a backward pass; sums and gradients of all weights are on the CPU
        sums = 2 * 4 * sum(layer.size for layer in model.layers) if model.device.type == "cpu" else 0
        return Need(
            "prune",
            weights_in_use(model),
            batch * cost.outputs,
            batch * 2 * max(cost.forward, cost.block) + sums,
        )
    statistics = 0
    if pruner.statistic is Gram:
        columns = [[layer.shape[1] for layer in block.layers] for block in model.blocks if block.layers]
        # One for each input, one per layer at most; the largest also as a mean, factored and on the way
        # there.
        statistics = max(sum(cols**2 for cols in block) + 3 * max(block) ** 2 for block in columns) * 4
    # A layer beside itself: before, as it is solved, what its weights are worth and which stay.
    return _waiting(model, "prune", cost, samples, batch, statistics + 4 * 4 * largest)


def _waiting(model: PrunableModel, step: str, cost: SampleCost, samples: int, batch: int, more: int) -> Need:
    """A step that runs block by block while the other samples' hidden states wait."""
    waiting, work = samples * cost.states, batch * cost.block + more
    if model.placement.kind == "none":
        return Need(step, weights_in_use(model), waiting, work)
    return Need(step, weights_in_use(model), batch * cost.states, work, waiting)


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
