"""What a model does in a bench: write tokens, or pass images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ecoflap.errors import UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.plan.parts import make

PROMPT = 32  # tokens that are read before new ones are written
SEED = 0


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        unit: tokens, images or samples.
        description: what a repeat is, in words.
        items: how many units a repeat has per sample of its batch.
        prepare: (batch size) -> the inputs of a repeat, the same for all forms.
        run: (model, inputs) -> one repeat.
    """

    unit: str
    description: str
    items: int
    prepare: Callable[[int], Any]
    run: Callable[[PrunableModel, Any], None]


def workload_for(model: PrunableModel, calibration: Any, tokens: int) -> Workload:
    """Text generation for a language model; for others, a forward pass with the loss.

    Args:
        model: the dense model.
        calibration: the ``calibration`` node of the runs' config.
        tokens: number of tokens that a language model writes for each prompt.

    Raises:
        UserError: if the calibration set can't be drawn.
    """
    towers = {tower.name for tower in model.every_tower}
    module: Any = model.module
    can_write = callable(getattr(module, "can_generate", None)) and module.can_generate()
    if can_write and not towers & {"vision", "audio"}:
        return _writing(model, tokens)
    return passing(model, calibration)


def _writing(model: PrunableModel, tokens: int) -> Workload:
    """Greedy generation of a fixed number of tokens, with a cache of keys and values."""
    module: Any = model.module
    vocabulary = int(module.get_input_embeddings().weight.shape[0])

    def prepare(size: int) -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        return torch.randint(vocabulary, (size, PROMPT), generator=generator)

    def run(model: PrunableModel, prompt: Tensor) -> None:
        writer: Any = model.module
        inputs = prompt.to(model.device)
        options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1}
        writer.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **options)

    what = f"greedy generation of {tokens} tokens after a prompt of {PROMPT}, the prompt's pass included"
    return Workload("tokens", what, tokens, prepare, run)


def passing(model: PrunableModel, calibration: Any) -> Workload:
    """A forward pass of calibration samples, with the loss; fewer than the batch size are repeated.

    Args:
        model: the dense model, which draws the samples.
        calibration: the ``calibration`` node of the runs' config.

    Raises:
        UserError: if there is no calibration set.
    """

    def prepare(size: int) -> list[dict[str, Tensor]]:
        loader = replace(make("calibration", OmegaConf.create(calibration)), samples=size)
        batches: list[dict[str, Tensor]] = loader.load(model, seed=SEED).repeat(size).batches(size)
        return batches

    def run(model: PrunableModel, batches: list[dict[str, Tensor]]) -> None:
        with quiet_forward(model.module):
            for batch in batches:
                model.loss(batch)

    if not isinstance(calibration, dict):
        raise UserError("the run has no calibration set to time passes on; bench a run that calibrates")
    unit = "images" if any(tower.name == "vision" for tower in model.every_tower) else "samples"
    return Workload(unit, "a forward pass of calibration samples, with the loss", 1, prepare, run)


def reads_cpu_time(model: PrunableModel) -> bool:
    """Whether the CPU time of the process is the time of a repeat that no other process can lengthen."""
    return model.device.type == "cpu" and torch.get_num_threads() == 1


@torch.no_grad()
def seconds_of(workload: Workload, model: PrunableModel, inputs: Any) -> float:
    """The time of one repeat, until the device has finished."""
    clock = time.process_time if reads_cpu_time(model) else time.perf_counter
    synchronise = torch.accelerator.synchronize if model.device.type != "cpu" else lambda: None
    synchronise()
    started = clock()
    workload.run(model, inputs)
    synchronise()
    return clock() - started


@torch.no_grad()
def operations_of(workload: Workload, model: PrunableModel, inputs: Any) -> int:
    """Floating-point operations of one repeat; a product with a zero counts like any other.

    Attention runs as matrix products, because the counter does not know all of its fused kernels.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        workload.run(model, inputs)
    return int(counter.get_total_flops())
