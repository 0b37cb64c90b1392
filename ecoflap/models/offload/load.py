"""Load a model whose blocks are offloaded: ``runtime.offload``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecoflap.console.tables import table
from ecoflap.console.telemetry import free_memory
from ecoflap.errors import UserError
from ecoflap.models.core.expert_slices import refresh
from ecoflap.models.core.hooks import setting
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.checkpoint_folder import stored_in
from ecoflap.models.loading.conversion import match_tensors, warn_unused
from ecoflap.models.offload.copies import pinned
from ecoflap.models.offload.in_memory import InMemory, OnCpu
from ecoflap.models.offload.placement import (
    AT_A_TIME,
    block_bytes,
    bytes_outside,
    own_parameters,
    placeholder,
)
from ecoflap.models.offload.shards import OnDisk, Shards, read_outside

log = logging.getLogger(__name__)


@dataclass
class Streaming:
    """The report of a loader that left the weights on the disk.

    Attributes:
        folder: the checkpoint folder; None if the loader reads no checkpoint folder.
    """

    folder: Path | None = None


_streaming: ContextVar[Streaming | None] = ContextVar("streaming", default=None)


def streaming_from_disk() -> AbstractContextManager[Streaming]:
    """Make the loaders of checkpoint folders read names, shapes and buffers only, in this context."""
    return setting(_streaming, Streaming())


def streaming() -> Streaming | None:
    """The report of the innermost ``streaming_from_disk``; None outside of one."""
    return _streaming.get()


def require_loaded(loader: Any, *options: str) -> None:
    """Refuse options of a loader that change weights after loading, if the weights stay on the disk.

    Args:
        loader: a loader of the config group ``model``.
        options: names of such options.

    Raises:
        UserError: if the weights stay on the disk, and one of the options is set.
    """
    values = {option: getattr(loader, option) for option in options}
    given = [f"model.{option}={value}" for option, value in values.items() if value is not None]
    if given and streaming() is not None:
        raise UserError(
            f"{given[0]} changes weights as they are loaded, and runtime.offload=disk leaves them on the"
            " disk; use runtime.offload=cpu"
        )


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters are on the meta device.

    Buffers are built as usual, because checkpoints lack some, such as rotary frequencies.
    """
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        original(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            module._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def load_offloaded(loader: Any, device: torch.device, selection: Any, kind: str, work: Path) -> PrunableModel:
    """Load a model with its blocks placed as ``runtime.offload`` says.

    Args:
        loader: a loader of the config group ``model``.
        device: the device that blocks run on.
        selection: which towers and layers are pruned.
        kind: none, cpu or disk.
        work: folder for pruned blocks and hidden states; created when needed.

    Raises:
        UserError: if there is no such model, it doesn't fit, or its weights can't stay on the disk.
    """
    if kind == "none":
        model: PrunableModel = loader.load(device, selection)
        return model
    load = _on_cpu if kind == "cpu" else _on_disk
    return load(loader, device, selection, work)


def _on_cpu(loader: Any, device: torch.device, selection: Any, work: Path) -> PrunableModel:
    model: PrunableModel = loader.load(torch.device("cpu"), selection)
    ahead = show_plan("cpu", model, device)
    offloaded = own_parameters(model.module, model.blocks)
    parameters = {name: parameter for mine in offloaded.values() for name, parameter in mine.items()}
    source = InMemory(pinned({name: parameter.data for name, parameter in parameters.items()}, device))
    for parameter in parameters.values():
        parameter.data = placeholder(parameter.shape, parameter.dtype)
    refresh(model.module)
    _move_rest(model.module, {id(parameter) for parameter in parameters.values()}, device)
    placement = OnCpu("cpu", model.module, model.blocks, source, device, work)
    placement.reads_ahead = ahead
    return replace(model, placement=placement)


def _on_disk(loader: Any, device: torch.device, selection: Any, work: Path) -> PrunableModel:
    with streaming_from_disk() as report:
        model: PrunableModel = loader.load(torch.device("cpu"), selection)
    if report.folder is None:
        raise UserError(
            f"runtime.offload=disk: model {loader.name} is not read from a folder of safetensors; save it"
            " once with model.save=true and give that folder to model=causal_lm or its kind, or use"
            " runtime.offload=cpu"
        )
    ahead = show_plan("disk", model, device)
    offloaded = own_parameters(model.module, model.blocks)
    matched = match_tensors(loader.path, model.module, stored_in(report.folder))
    warn_unused(loader.path, model.module, matched.unused)
    read_outside(model.module, matched.found, {name for mine in offloaded.values() for name in mine}, device)
    made: dict[int, nn.Parameter] = {}
    for owner in model.module.modules():
        for attribute, parameter in owner._parameters.items():
            if parameter is not None and parameter.device.type == "meta":
                empty = placeholder(parameter.shape, parameter.dtype)
                offloaded_parameter = nn.Parameter(empty, parameter.requires_grad)
                owner._parameters[attribute] = made.setdefault(id(parameter), offloaded_parameter)
    _move_rest(model.module, {id(parameter) for parameter in made.values()}, device)
    placement = OnDisk("disk", model.module, model.blocks, Shards(matched.found, work), device, work)
    placement.reads_ahead = ahead
    return replace(model, placement=placement)


def _move_rest(module: nn.Module, offloaded: set[int], device: torch.device) -> None:
    """Move all weights that belong to no block, and all buffers, to the device."""
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in offloaded:
            tensor.data = tensor.data.to(device)


def weight_sizes(model: PrunableModel) -> list[tuple[str, int]]:
    """Bytes of weights in memory at a time, by what they are for."""
    blocks, outside = block_bytes(model.blocks), bytes_outside(model.module, model.blocks)
    largest = max(blocks)
    return [
        ("all weights", outside + sum(blocks)),
        ("outside the blocks", outside),
        (f"blocks at a time ({AT_A_TIME} of {len(blocks)})", AT_A_TIME * largest),
        ("weights in use", outside + AT_A_TIME * largest),
    ]


def show_weights(model: PrunableModel, title: str) -> None:
    """Print the bytes of a model's weights: all, and those in memory at a time if blocks are offloaded."""
    rows = [(what, f"{size / 2**20:,.1f} MiB") for what, size in weight_sizes(model)]
    table(title, ["what", "size"], rows)


def show_plan(kind: str, model: PrunableModel, device: torch.device) -> bool:
    """Print how much memory the weights will use, before anything is computed.

    Returns:
        Whether there is room for the next block while one runs.

    Raises:
        UserError: if not even one block at a time fits on the device.
    """
    show_weights(model, f"memory (runtime.offload={kind}, on {device})")
    both, free = dict(weight_sizes(model))["weights in use"], free_memory(device)
    needed = both - (AT_A_TIME - 1) * max(block_bytes(model.blocks))
    if needed > free:
        raise UserError(
            f"runtime.offload={kind} still needs {needed / 2**30:.1f} GiB at a time and {device} has"
            f" {free / 2**30:.1f} GiB free; use model.dtype=bfloat16 or device=cpu"
        )
    if both > free:
        log.info("%s has room for one block at a time: none is loaded while another runs", device)
    return both <= free
