"""How many devices of which size a run wants, from the model's shapes.

Processes that share the samples have a device each, with the weights of the blocks in use and the statistics
of a whole block on it. So more devices hold fewer hidden states each; nothing else takes less memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ecoflap.blocks.bypass import without_head
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block
from ecoflap.run.plan import Plan
from ecoflap.run.steps.memory import WITHOUT_DATA, needs_without_data
from ecoflap.run.steps.sample_cost import SampleCost, learning_cost
from ecoflap.run.steps.workload import Need, Workload

SIZES = (16, 24, 40, 80, 141)  # GB of accelerators that are common
GB = 10**9


def cost_from_shapes(model: PrunableModel, tokens: int) -> SampleCost:
    """The activations of a sample as far as shapes tell: hidden states, outputs of blocks' layers, logits.

    Each token goes through every tower that is pruned, and through as many experts as the config says. What a
    training stores of a block is about twice what its layers put out.

    Args:
        model: the model, on any device.
        tokens: of the sample.
    """
    size = model.layers[0].weight.dtype.itemsize
    towers = [tower for tower in model.towers if tower.layers]
    states = [tokens * size * tower.layers[0].shape[1] for tower in towers]
    outputs = sum(state * len(tower.blocks) for state, tower in zip(states, towers, strict=True))
    routed = _experts_per_token(model)
    inside = [tokens * size * _outputs(block, routed) for tower in towers for block in tower.blocks]
    block = max(inside) + max(states)
    heads: Iterable[Any] = without_head(model.module)
    logits = tokens * size * sum(head.out_features for head in heads)
    training = 2 * sum(inside) + outputs + logits + max(block, logits)
    forward = block + logits
    learning = learning_cost(outputs, block, forward)
    return SampleCost(sum(states), outputs, block, forward, training, logits, learning)


def _outputs(block: Block, routed: int | None) -> int:
    """Numbers that a block's layers put out for a token."""
    of_experts: dict[object, list[Layer]] = {}
    for layer in block.layers:
        of_experts.setdefault(layer.stage, []).append(layer)
    return sum(sum(layer.shape[0] for layer in layers[:routed]) for layers in of_experts.values())


def _experts_per_token(model: PrunableModel) -> int | None:
    """How many experts a token is routed to; None where the config doesn't say."""
    config = getattr(model.module, "config", None)
    configs = (config, getattr(config, "text_config", None))
    found = [getattr(one, "num_experts_per_tok", None) for one in configs]
    return next((count for count in found if count), None)


def devices_wanted(needs: Mapping[int, Sequence[Need]], size: int, waiting: bool) -> int | None:
    """The fewest devices of a size that a run fits on; None if no number is enough.

    Args:
        needs: what the steps need on each device, by the number of devices.
        size: bytes of one device.
        waiting: let hidden states wait elsewhere, where the plan has them do so.
    """

    def fits(need: Need) -> bool:
        kept = replace(need, states=need.states + need.offloaded)
        return (need if waiting else kept).total <= size

    return next((count for count in sorted(needs) if all(map(fits, needs[count]))), None)


def say_devices(needs: Mapping[int, Sequence[Need]], offload: str) -> str:
    """A line on the devices that a run wants.

    Args:
        needs: what the steps need on each device, by the number of devices.
        offload: how the model is offloaded: none, cpu or disk.
    """

    def choices(waiting: bool) -> str:
        found, fewest = [], max(needs) + 1
        for size in SIZES:  # a larger device only where fewer of them do
            count = devices_wanted(needs, size * GB, waiting)
            if count is not None and count < fewest:
                found.append(f"{count} x {size} GB")
                fewest = count
        return " or ".join(found)

    everything, least = choices(waiting=False), choices(waiting=True)
    if not least:
        option = (
            "runtime.offload=cpu" if offload == "none" else "model.dtype=bfloat16, or a smaller batch_size"
        )
        return f"fits no device of up to {SIZES[-1]} GB; use {option}"
    beside = f"; {everything} with all hidden states on the devices" if everything not in ("", least) else ""
    return f"fits {least}{beside}"


def wanted_by(plan: Plan, model: PrunableModel, device: torch.device) -> str:
    """A line on the devices that a planned run wants.

    Args:
        plan: the run.
        model: its model, on the meta device.
        device: one of the devices.
    """
    config, calibrator = plan.config, plan.calibrator
    tokens, samples = getattr(calibrator, "sequence_length", None), calibrator.samples
    cost, of = WITHOUT_DATA, "weights and statistics, beside activations"
    if tokens is not None and samples is not None:
        cost, of = cost_from_shapes(model, tokens), f"{samples} samples of up to {tokens} tokens"
    samples, offload = samples or 1, config.runtime.offload
    needs = {
        count: needs_without_data(model, offload, device, Workload.of(plan, samples, count), cost)
        for count in device_counts(samples, config.batch_size)
    }
    return f"{say_devices(needs, offload)} ({of}, about)"


def device_counts(samples: int, batch_size: int) -> list[int]:
    """Powers of two of devices, as far as each has a full batch of the samples; at least one device."""
    return [2**power for power in range((samples // batch_size).bit_length())] or [1]
