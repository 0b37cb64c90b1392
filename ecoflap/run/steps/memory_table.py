"""Show how much memory each step will need, and which option lowers it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from ecoflap.blocks.footprint import WIDE
from ecoflap.console.host_memory import free_host_memory
from ecoflap.console.tables import table
from ecoflap.console.telemetry import free_memory
from ecoflap.distributed.processes import size
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import AT_A_TIME, Planned
from ecoflap.run.show import said_before
from ecoflap.run.steps.memory import all_on_device, weights_in_use
from ecoflap.run.steps.workload import Need
from ecoflap.storage.disk_space import free_disk

log = logging.getLogger(__name__)


def show_needs_without_data(
    model: PrunableModel, offload: str, device: torch.device, needs: Sequence[Need]
) -> None:
    """Print how much memory each step will need on a device beside the activations."""
    dtype = str(model.layers[0].weight.dtype).removeprefix("torch.")
    whole = all_on_device(replace(model, placement=Planned(offload, device)))
    held = "all weights" if whole else f"{AT_A_TIME} blocks at a time"
    rows = [(need.step, *map(mebibytes, (need.weights, need.one_pass, need.total))) for need in needs]
    table(
        f"approximate memory beside activations: {held} (runtime.offload={offload}), {dtype}",
        ["step", "weights", "statistics", "total"],
        rows,
    )


def show_needs(model: PrunableModel, needs: Sequence[Need]) -> None:
    """Print how much memory each step needs; warn if it is not free, and say which option helps."""
    free, kind, whole = free_memory(model.device), model.placement.kind, all_on_device(model)
    rows = []
    for need in needs:
        sizes = [need.weights, need.states, need.one_pass, need.total]
        rows.append((need.step, *map(mebibytes, sizes if whole else [*sizes, need.offloaded])))
    columns = ["step", "weights", "hidden states", "one pass", "total"]
    if needs and not said_before(f"memory {model.name} {rows}"):
        table(
            f"approximate peak memory on {model.device} ({mebibytes(free)} free beside the loaded weights)",
            columns if whole else [*columns, f"waiting on {kind}"],
            rows,
        )
    loaded = weights_in_use(model) if whole else 0
    half, on_cpu = model.layers[0].weight.dtype.itemsize < WIDE, model.device.type == "cpu"
    for need in needs:
        if (missing := need.total - loaded) > free:
            message, helps = "%s may need %s and there are %s free: %s", what_helps(need, kind, half, on_cpu)
            log.warning(message, need.step, mebibytes(missing), mebibytes(free), helps)
    _warn_of_waiting_states(model, needs)


def _warn_of_waiting_states(model: PrunableModel, needs: Sequence[Need]) -> None:
    """Warn if hidden states may not fit on the CPU or the disk, where they wait for the next block."""
    waiting = [need for need in needs if need.offloaded]
    if not waiting:
        return
    if model.placement.kind == "disk":
        assert model.placement.folder is not None
        # The processes of a run write to folders inside that of the run.
        place, free, helps = "disk", free_disk(model.placement.folder) // size(), "hydra.run.dir=/a/folder"
    else:
        place, free, helps = "CPU", free_host_memory(), "runtime.offload=disk"
    for need in waiting:
        if need.offloaded > free:
            message = "%s stores %s of hidden states on the %s, where %s are free: use %s, or fewer samples"
            log.warning(message, need.step, mebibytes(need.offloaded), place, mebibytes(free), helps)


def what_helps(need: Need, kind: str, half: bool = False, on_cpu: bool = False) -> str:
    """The option that lowers the largest part of a step's memory.

    Args:
        need: the memory that the step needs.
        kind: how the model is offloaded: none, cpu or disk.
        half: whether its weights are in half precision.
        on_cpu: whether it runs on the CPU, in whose memory ``runtime.offload=cpu`` leaves everything.
    """
    further = {"none": "disk" if on_cpu else "cpu", "cpu": "disk"}.get(kind)
    offload = [] if further is None or need.together else [f"runtime.offload={further}"]
    largest = max(need.one_pass, need.states, need.weights)
    if largest == need.weights:
        helps = [*_smaller_weights(need, half), *offload]
        return f"use {', or '.join(helps or ['a device with more memory'])}"
    if largest == need.states and need.step == "score":
        return "use fewer samples, or a smaller score.batch_size"
    if largest == need.states and not need.of_batch:
        return f"use {', or '.join([*offload, 'fewer samples'])}"
    return f"use {', or '.join([f'a smaller {need.batch_size}', *need.less_work])}"


def _smaller_weights(need: Need, half: bool) -> list[str]:
    """What makes the weights of a step smaller."""
    if need.wide:
        fewer = ["score=first_order, which needs no fp32 copy"] if need.step == "score" else []
        return [*fewer, *need.less_weights]
    return [] if half else ["model.dtype=bfloat16"]


def mebibytes(size: int) -> str:
    """A number of bytes in MiB."""
    return f"{size / 2**20:,.1f} MiB"
