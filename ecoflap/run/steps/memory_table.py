"""Show how much memory each step will need, and which option lowers it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ecoflap.console.tables import table
from ecoflap.console.telemetry import free_memory
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import AT_A_TIME
from ecoflap.run.show import said_before
from ecoflap.run.steps.memory import Need, weights_in_use

log = logging.getLogger(__name__)


def show_needs_without_data(model: PrunableModel, offload: str, needs: Sequence[Need]) -> None:
    """Print how much memory each step will need beside the activations."""
    dtype = str(model.layers[0].weight.dtype).removeprefix("torch.")
    held = "all weights" if offload == "none" else f"{AT_A_TIME} blocks at a time"
    rows = [(need.step, *map(mebibytes, (need.weights, need.work, need.total))) for need in needs]
    table(
        f"approximate memory beside activations: {held} (runtime.offload={offload}), {dtype}",
        ["step", "weights", "statistics", "total"],
        rows,
    )


def show_needs(model: PrunableModel, needs: Sequence[Need]) -> None:
    """Print how much memory each step needs; warn if it is not free, and say which option helps."""
    free, kind = free_memory(model.device), model.placement.kind
    rows = []
    for need in needs:
        sizes = [need.weights, need.states, need.work, need.total]
        rows.append((need.step, *map(mebibytes, [*sizes, need.offloaded] if kind != "none" else sizes)))
    columns = ["step", "weights", "hidden states", "one pass", "total"]
    if not said_before(f"memory {model.name} {rows}"):
        table(
            f"approximate peak memory on {model.device} ({mebibytes(free)} free beside the loaded weights)",
            columns if kind == "none" else [*columns, f"waiting on {kind}"],
            rows,
        )
    loaded = weights_in_use(model) if kind == "none" else 0
    for need in needs:
        if (missing := need.total - loaded) > free:
            message = "%s may need %s and there are %s free: %s"
            log.warning(message, need.step, mebibytes(missing), mebibytes(free), what_helps(need, kind))


def what_helps(need: Need, kind: str) -> str:
    """The option that lowers the largest part of a step's memory.

    Args:
        need: the memory that the step needs.
        kind: how the model is offloaded: none, cpu or disk.
    """
    largest = max(need.work, need.states, need.weights)
    if largest == need.weights:
        weights = (
            "use score=first_order, which needs no fp32 copy" if need.wide else "use model.dtype=bfloat16"
        )
        further = {"none": ", or runtime.offload=cpu", "cpu": ", or runtime.offload=disk"}
        return weights + further.get(kind, "")
    if largest == need.states:
        if need.step == "score":
            return "use fewer samples, or a smaller score.batch_size"
        return "use runtime.offload=cpu, or fewer samples"
    return f"use a smaller {need.batch_size}"


def mebibytes(size: int) -> str:
    """A number of bytes in MiB."""
    return f"{size / 2**20:,.1f} MiB"
