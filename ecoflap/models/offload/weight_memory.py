"""How much memory weights take: all of them, and those in use while blocks are offloaded."""

from __future__ import annotations

import logging

import torch

from ecoflap.console.tables import table
from ecoflap.console.telemetry import free_memory
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import AT_A_TIME, block_bytes, bytes_outside

log = logging.getLogger(__name__)


def show_weights(model: PrunableModel, title: str) -> None:
    """Print the bytes of a model's weights: all, and those in memory at a time if blocks are offloaded."""
    blocks, outside = block_bytes(model.blocks), bytes_outside(model.module, model.blocks)
    at_a_time = AT_A_TIME * max(blocks)
    sizes = {
        "all weights": outside + sum(blocks),
        "outside the blocks": outside,
        f"blocks at a time ({AT_A_TIME} of {len(blocks)})": at_a_time,
        "weights in use": outside + at_a_time,
    }
    rows = [(what, f"{size / 2**20:,.1f} MiB") for what, size in sizes.items()]
    table(title, ["what", "size"], rows)


def fits_ahead(kind: str, model: PrunableModel, device: torch.device) -> bool:
    """Whether there is room for the next block while one runs.

    Args:
        kind: cpu or disk.
        model: the model; its weights may be on the meta device.
        device: the device that blocks will run on.

    Raises:
        UserError: if not even one block at a time fits on the device.
    """
    largest = max(block_bytes(model.blocks))
    one, free = bytes_outside(model.module, model.blocks) + largest, free_memory(device)
    if one > free:
        raise UserError(
            f"runtime.offload={kind} still needs {one / 2**30:.1f} GiB at a time and {device} has"
            f" {free / 2**30:.1f} GiB free; use model.dtype=bfloat16 or device=cpu"
        )
    ahead = one + (AT_A_TIME - 1) * largest <= free
    if not ahead:
        log.info("%s has room for one block at a time: none is loaded while another runs", device)
    return ahead
