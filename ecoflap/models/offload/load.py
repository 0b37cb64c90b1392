"""Load a model whose blocks are offloaded: ``runtime.offload``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecoflap.errors import UserError
from ecoflap.models.core.expert_slices import refresh
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.loading.checkpoint_folder import stored_in
from ecoflap.models.loading.conversion import match_tensors, warn_unused
from ecoflap.models.loading.modes import streaming_from_disk
from ecoflap.models.offload.copies import pinned
from ecoflap.models.offload.in_memory import InMemory, OnCpu
from ecoflap.models.offload.placement import own_parameters, placeholder
from ecoflap.models.offload.shards import OnDisk, Shards, read_outside
from ecoflap.models.offload.weight_memory import fits_ahead, show_weights


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
    show_weights(model, f"memory (runtime.offload=cpu, on {device})")
    ahead = fits_ahead("cpu", model, device)
    offloaded = own_parameters(model.module, model.blocks)
    parameters = {name: parameter for mine in offloaded.values() for name, parameter in mine.items()}
    source = InMemory(pinned({name: parameter.data for name, parameter in parameters.items()}, device))
    for parameter in parameters.values():
        parameter.data = placeholder(parameter.shape, parameter.dtype)
    refresh(model.module)
    _move_rest(model.module, {id(parameter) for parameter in parameters.values()}, device)
    placement = OnCpu(model.module, model.blocks, source, device, work, ahead)
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
    show_weights(model, f"memory (runtime.offload=disk, on {device})")
    ahead = fits_ahead("disk", model, device)
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
    source = Shards(matched.found, work)
    placement = OnDisk(model.module, model.blocks, source, device, work, ahead)
    return replace(model, placement=placement)


def _move_rest(module: nn.Module, offloaded: set[int], device: torch.device) -> None:
    """Move all weights that belong to no block, and all buffers, to the device."""
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in offloaded:
            tensor.data = tensor.data.to(device)
