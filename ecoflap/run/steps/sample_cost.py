"""The memory that the activations of one sample take, measured on the largest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.blocks.block_call import extract_hidden, first_tensor
from ecoflap.blocks.bypass import bypassing, without_head
from ecoflap.data.calibration_set import CalibrationSet, stack
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block
from ecoflap.score.pass_size import LiveBytes

WIDE = 4  # bytes of an fp32 number


@dataclass(frozen=True)
class SampleCost:
    """The memory that the activations of one sample take, in bytes.

    Attributes:
        states: hidden states between two blocks of each tower, and the other arguments of its blocks; those
            of finished towers are kept for later ones.
        outputs: outputs of all blocks.
        block: the most inside a block.
        forward: the most in a whole forward pass.
    """

    states: int
    outputs: int
    block: int
    forward: int

    def in_float32(self, model: PrunableModel) -> SampleCost:
        """The cost with the model in fp32."""
        wider = WIDE / min(WIDE, *(layer.weight.dtype.itemsize for layer in model.layers))
        return SampleCost(*(int(wider * size) for size in vars(self).values()))


@torch.no_grad()
def sample_cost(model: PrunableModel, calibration: CalibrationSet) -> SampleCost:
    """Run the largest sample through the model and count the bytes of its activations.

    The head may be on the disk, so it is bypassed and the size of its logits computed from their shape.
    """
    largest = max(calibration.samples, key=lambda sample: sum(tensor.numel() for tensor in sample.values()))
    first = [tower.blocks[0].module for tower in model.towers]
    outputs: Counter[nn.Module] = Counter()
    head = without_head(model.module)
    with (
        quiet_forward(model.module),
        bypassing(head),
        LiveBytes() as live,
        _arguments(model) as arguments,
        _peaks(model, live, outputs, head) as peaks,
    ):
        model.loss(stack([largest]))
    logits = sum(outputs.pop(module, 0) for module in head)
    return SampleCost(
        states=sum(outputs[module] for module in first) + sum(tensor.nbytes for tensor in arguments.values()),
        outputs=sum(outputs.values()),
        block=peaks.block,
        forward=max(peaks.forward, live.peak - peaks.weights) + logits,
    )


@contextmanager
def _arguments(model: PrunableModel) -> Iterator[dict[int, Tensor]]:
    """Collect the tensors that blocks receive beside the hidden states in a forward pass, each once."""
    found: dict[int, Tensor] = {}

    def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.update({id(tensor): tensor for tensor in extract_hidden(arguments, keywords)[0].tensors})

    with hooks(block.module.register_forward_pre_hook(note, with_kwargs=True) for block in model.blocks):
        yield found


@dataclass
class _Peaks:
    """The most bytes in a forward pass so far.

    Attributes:
        block: of activations in a call of a block.
        forward: of activations at once.
        weights: of offloaded blocks that are loaded now, which are not activations.
    """

    block: int = 0
    forward: int = 0
    weights: int = 0


@contextmanager
def _peaks(
    model: PrunableModel, live: LiveBytes, outputs: Counter[nn.Module], head: Iterable[nn.Module]
) -> Iterator[_Peaks]:
    """Count the bytes of activations during a forward pass.

    Args:
        model: the model.
        live: counts the bytes of all live tensors.
        outputs: receives the bytes that each block and the head return.
        head: the modules of the head.

    Yields:
        The peaks, filled during the pass; ``live.peak`` is what came after the last block.
    """
    peaks = _Peaks()
    entered: list[tuple[int, int]] = []

    def before(block: Block, *_: Any) -> None:
        peaks.forward, start = max(peaks.forward, live.peak - peaks.weights), live.alive
        with model.placement.using(block):  # its weights are loaded before its activations are counted
            peaks.weights += live.alive - start
        entered.append((live.alive, live.peak))
        live.peak = live.alive

    def after(module: nn.Module, _: Any, output: Any) -> None:
        alive, peak = entered.pop()
        peaks.block = max(peaks.block, live.peak - alive)
        peaks.forward = max(peaks.forward, live.peak - peaks.weights)
        live.peak = max(live.peak, peak) if entered else live.alive
        count(module, _, output)

    def count(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module] += first_tensor(output).nbytes

    entering = (block.module.register_forward_pre_hook(partial(before, block)) for block in model.blocks)
    leaving = (block.module.register_forward_hook(after) for block in model.blocks)
    counting = (module.register_forward_hook(count) for module in head)
    with hooks(entering), hooks(leaving), hooks(counting):
        yield peaks
