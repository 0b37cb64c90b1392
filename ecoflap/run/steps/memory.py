"""How much memory each step will need, estimated before the long computations.

The activations are measured on the largest sample and multiplied; weights, hidden states and statistics are
computed from their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch

from ecoflap.blocks.footprint import KEPT_BYTES, WIDE, Footprint
from ecoflap.console.telemetry import free_memory
from ecoflap.finetune.footprint import TrainingFootprint
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.offload.placement import AT_A_TIME, Planned, block_bytes, bytes_outside
from ecoflap.run.steps.sample_cost import SampleCost
from ecoflap.run.steps.workload import Need, Workload
from ecoflap.score.pass_size import SATURATION

WITHOUT_DATA = SampleCost(0, 0, 0, 0)

DRIFT = 12
"""Bytes per number of a drift: the sum, and the mean beside it."""


def memory_needs(model: PrunableModel, cost: SampleCost, work: Workload) -> list[Need]:
    """How much memory scoring, allocating, pruning and training will need on each device, if they run.

    Processes that share the samples have the same weights and statistics on their devices; where they share
    the layers of a block to prune, each prunes one at a time as before, or some of its rows.

    Args:
        model: the loaded model.
        cost: bytes of activations of one sample.
        work: the parts, and what they read.
    """
    needs, samples = [], -(-work.samples // work.devices)
    if work.scorer is not None:
        need = _need(model, "score", work.scorer.footprint, cost, samples, work.scorer.batch_size)
        needs.append(replace(need, batch_size="score.batch_size"))
    if (allocating := work.allocating) is not None:
        beside = _with_trials(allocating, work.pruner.footprint)
        need = _need(model, "allocate", beside, cost, samples, allocating.batch_size or work.batch_size)
        needs.append(replace(need, batch_size=_option("allocation", allocating)))
    if "prune" in work.steps:
        pruning = replace(work.pruner.footprint, beside_dense=work.propagate == "compensated")
        read = samples if work.pruner.requires_calibration else 0
        need = _need(model, "prune", pruning, cost, read, pruning.batch_size or work.batch_size)
        needs.append(replace(need, batch_size=_option("pruner", pruning)))
    training = work.finetuner.footprint(model, work.sparsity) if work.finetuner is not None else None
    if training is not None:
        needs.append(_training_need(model, training, cost, work))
    return [replace(need, together=work.together) for need in needs]


def _option(group: str, footprint: Footprint) -> str:
    """The option that sets the samples per pass of a part."""
    return "batch_size" if footprint.batch_size is None else f"{group}.batch_size"


def _with_trials(allocating: Footprint, pruning: Footprint) -> Footprint:
    """The footprint of an allocation, with the pruner's statistic and workspace if it prunes in trials."""
    if not allocating.trials:
        return allocating
    layers = max(allocating.layers, pruning.layers)
    return replace(allocating, statistic=pruning.statistic, layers=layers)


def _need(
    model: PrunableModel, step: str, footprint: Footprint, cost: SampleCost, samples: int, batch: int
) -> Need:
    """How much memory a step with this footprint needs for batches of at most ``batch`` samples."""
    batch = batch if footprint.trained else min(batch, samples)  # a training reads other samples
    wide = footprint.float32
    weights = weights_in_use(model, WIDE if wide else 1, footprint.passes == "backward")
    cost = cost.in_float32(model) if wide else cost
    held = _held(model, footprint)
    if model.device.type == "cpu":
        held += min(samples, footprint.predictions) * cost.logits
    if footprint.passes == "blocks":
        streams = 2 if footprint.beside_dense else 1
        waiting, work = streams * samples * cost.states, streams * batch * cost.block + held
        learning = min(2, batch) * cost.learning
        if all_on_device(model):
            return Need(step, weights, waiting, work, wide=wide, learning=learning)
        states = streams * batch * cost.states
        return Need(step, weights, states, work, waiting, wide, of_batch=True, learning=learning)
    if footprint.passes == "backward":
        work = batch * (cost.training if footprint.trained else 2 * max(cost.forward, cost.block))
    else:
        pair, pairs = 2 * batch * cost.forward, max(1, footprint.samples_per_pass // (2 * batch))
        work = min(pairs * pair, max(pair, SATURATION))
    states, waiting, of_batch = batch * cost.outputs, 0, True
    if footprint.trials:  # the statistics are gathered block by block
        stays = all_on_device(model)
        of_batch = not stays or states > samples * cost.states
        states, waiting = max(states, (samples if stays else batch) * cost.states), samples * cost.states
        waiting = 0 if stays else waiting
    return Need(step, weights, states, work + held, waiting, wide, of_batch=of_batch)


def _training_need(
    model: PrunableModel, footprint: TrainingFootprint, cost: SampleCost, work: Workload
) -> Need:
    """How much memory a training with this footprint needs; by block, every device has all samples."""
    cost = cost.in_float32(model) if footprint.float32 else cost
    weights = footprint.held
    if footprint.sharded:  # the model is complete in fp32 before and after the training
        weights = max(weights_in_use(model, WIDE), -(-weights // work.devices))
    need = Need("finetune", weights, 0, 0, wide=True, less_weights=footprint.less_weights)
    if footprint.by_block:
        batch = min(work.batch_size, work.samples)
        states, learning = work.samples * cost.states, min(2, batch) * cost.learning
        return replace(need, states=2 * states, work=3 * batch * cost.block, learning=states + learning)
    batch, need = footprint.batch_size or work.batch_size, replace(need, batch_size="finetune.batch_size")
    if footprint.recompute:
        one = 2 * max(cost.forward, cost.block)
        return replace(need, states=batch * cost.outputs, work=batch * one, of_batch=True)
    return replace(need, work=batch * cost.training, less_work=("finetune.recompute=true",))


def _held(model: PrunableModel, footprint: Footprint) -> int:
    """Bytes beside the activations: statistics, and copies of layers."""
    layers, on_cpu = model.layers, model.device.type == "cpu"
    together = bool(footprint.trials) and (on_cpu or model.placement.kind == "none")
    held = WIDE * footprint.layers * max(layer.size for layer in layers)
    held += footprint.parameters * max(layer.parameter.nbytes for layer in layers)
    if footprint.trained:
        held += 3 * WIDE * sum(parameter.numel() for parameter in model.module.parameters())
    if (statistic := footprint.statistic) is not None:
        columns = [[layer.shape[1] for layer in block.layers] for block in model.blocks if block.layers]
        if together:
            every = list(chain(*columns))
            held += statistic.size_of(every) + statistic.size_of_solutions(every)
        else:
            held += max(map(statistic.size_of, columns))
    if footprint.beside_dense:  # the drifts of an input and of a stream, a block's dense and pruned weights
        held += DRIFT * max(layer.shape[1] ** 2 + layer.size for layer in layers)
        held += 2 * max(block_bytes(model.blocks))
    if on_cpu:
        held += WIDE * footprint.copies * sum(layer.size for layer in layers)
    if together:
        size = sum(layer.size * layer.weight.dtype.itemsize for layer in layers)
        held += footprint.trials * size + min(footprint.kept * size, KEPT_BYTES)
    return held


def all_on_device(model: PrunableModel) -> bool:
    """Whether what waits is in the device's memory, as on the CPU with ``runtime.offload=cpu``."""
    kind = model.placement.kind
    return kind == "none" or (kind == "cpu" and model.device.type == "cpu")


def weights_in_use(model: PrunableModel, width: int = 1, backward: bool = False) -> int:
    """Bytes of the weights on the device at a time.

    Args:
        model: the model.
        width: the least bytes per weight.
        backward: whether there are backward passes, which need two blocks.
    """
    blocks, placement = block_bytes(model.blocks, width), model.placement
    at_a_time = AT_A_TIME if placement.reads_ahead or backward else 1
    inside = sum(blocks) if placement.kind == "none" else at_a_time * max(blocks)
    if placement.kind != "none" and all_on_device(model):  # blocks that are not converted are not copied
        own = block_bytes(model.blocks)
        inside = sum(own) + (inside if own != blocks else 0)
    return bytes_outside(model.module, model.blocks, width) + inside


def keep_states(model: PrunableModel, needs: Sequence[Need]) -> list[Need]:
    """Let the hidden states of an offloaded model stay on its accelerator as far as they fit.

    What is planned beside them counts twice, as it may be off by that much. On the CPU they stay where
    ``runtime.offload`` puts them, as the memory that is free there may not be this process's to take.

    Args:
        model: the model; its placement gets the room.
        needs: the memory that the steps need.

    Returns:
        The same with the hidden states that stay among the states, and the rest as offloaded.
    """
    placement, device = model.placement, model.device
    waits = [need for need in needs if need.offloaded]
    if not waits or device.type == "cpu":
        return list(needs)
    free = free_memory(device) + bytes_outside(model.module, model.blocks)  # those weights are loaded
    placement.room = max(0, min(free - need.weights - 2 * (need.states + need.work) for need in waits))
    stays = [min(need.offloaded, placement.room) for need in needs]
    return [
        replace(need, states=need.states + size, offloaded=need.offloaded - size)
        for need, size in zip(needs, stays, strict=True)
    ]


def needs_without_data(
    model: PrunableModel,
    offload: str,
    device: torch.device,
    work: Workload,
    cost: SampleCost = WITHOUT_DATA,
) -> list[Need]:
    """How much memory the steps will need on each device, from the model's shapes alone.

    Evaluation has the weights alone, as calibration samples don't tell the activations of a task's.

    Args:
        model: the model, on the meta device.
        offload: how it will be offloaded: none, cpu or disk.
        device: the device that will run it.
        work: the parts, and what they read.
        cost: bytes of activations of one sample; by default none, which leaves weights and statistics.
    """
    planned = replace(model, placement=Planned(offload, device))
    evaluation = [Need("evaluate", weights_in_use(planned), 0, 0)] if "evaluate" in work.steps else []
    return [*memory_needs(planned, cost, work), *evaluation]
