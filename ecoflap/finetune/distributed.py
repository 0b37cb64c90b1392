"""One run in many processes, as torchrun starts them: on one node, or on several of a Slurm job.

Every process prunes for itself, which takes no longer than if one does. Then all get the first one's weights
and masks, because two accelerators need not agree to the last bit. Only the fine-tuning is distributed. Only
the first process writes the run's files; the others get temporary folders.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, distributed

from ecoflap.models.core.prunable import PrunableModel


def is_first() -> bool:
    """Whether this process is the only one or the first."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


@contextmanager
def joined(folder: Path, device: str) -> Iterator[Path]:
    """Join the other processes of the run, if torchrun or a similar launcher has started several.

    Args:
        folder: the folder of the run.
        device: the device in the run's config.

    Yields:
        The folder of the run in the first process, and a folder inside it in each other one.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or not os.environ.keys() >= {
        "RANK",
        "LOCAL_RANK",
        "MASTER_ADDR",
    }:
        yield folder
        return
    accelerated = device != "cpu" and torch.accelerator.is_available()
    if accelerated:
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    if not distributed.is_initialized():  # a sweep's next run finds the group of the one before
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if accelerated and torch.cuda.is_available() else "gloo"
        )
    shared = [str(folder)]
    distributed.broadcast_object_list(shared, src=0)
    own = Path(shared[0]) if is_first() else Path(shared[0]) / "processes" / os.environ["RANK"]
    own.mkdir(parents=True, exist_ok=True)
    if not is_first():
        logging.getLogger().setLevel(logging.WARNING)
    try:
        yield own
        distributed.barrier()
    finally:
        if is_first():
            shutil.rmtree(folder / "processes", ignore_errors=True)


def shared_folder(folder: Path) -> Path:
    """The folder of the run, from the folder of any process."""
    return folder if is_first() else folder.parents[1]


@torch.no_grad()
def agree(model: PrunableModel, masks: MutableMapping[str, Tensor]) -> None:
    """Broadcast the first process's weights and masks to all processes, in place."""
    if not distributed.is_initialized():
        return
    for tensor in model.module.state_dict().values():
        tensor.copy_(_of_first(tensor))
    for name in masks:
        masks[name] = _of_first(masks[name])


def _of_first(tensor: Tensor) -> Tensor:
    """The first process's value of a tensor, on the CPU."""
    shared = tensor.detach().to(device="cpu", copy=True).contiguous()
    distributed.broadcast(shared, src=0)
    return shared
