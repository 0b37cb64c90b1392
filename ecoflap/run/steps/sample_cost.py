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
from ecoflap.blocks.footprint import WIDE
from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet, by_shape, stack
from ecoflap.models.core.forward_modes import all_gradients, quiet_forward
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block
from ecoflap.score.pass_size import LiveBytes


@dataclass(frozen=True)
class SampleCost:
    """The memory that the activations of one sample take, in bytes.

    Attributes:
        states: hidden states between two blocks of each tower, and the other arguments of its blocks; those
            of finished towers are kept for later ones.
        outputs: outputs of all blocks.
        block: the most inside a block.
        forward: the most in a whole forward pass.
        training: the most in a forward and backward pass that stores all activations; 0 where no step
            does so.
        logits: the logits of all tokens.
        learning: the most while it is learned how blocks are called, see ``learning_cost``.
    """

    states: int
    outputs: int
    block: int
    forward: int
    training: int = 0
    logits: int = 0
    learning: int = 0

    def in_float32(self, model: PrunableModel) -> SampleCost:
        """The cost with the model in fp32."""
        wider = WIDE / min(WIDE, *(layer.weight.dtype.itemsize for layer in model.layers))
        return SampleCost(*(int(wider * size) for size in vars(self).values()))


def learning_cost(outputs: int, block: int, forward: int, others: int = 0) -> int:
    """The most bytes that are alive per sample while ``learn_structure`` runs.

    The inputs of all blocks are recorded as copies, and their outputs until the pass ends. A block that runs
    alone keeps what its layers read and put out, and is compared with what it put out before.

    Args:
        outputs: of all blocks.
        block: the most inside a block.
        forward: the most in a whole forward pass.
        others: how many further batches are recorded, of samples of other shapes.
    """
    return max(forward + (2 + others) * outputs, outputs + 3 * block)


@torch.no_grad()
def sample_cost(model: PrunableModel, calibration: CalibrationSet, stores: bool = False) -> SampleCost:
    """Run the largest sample through the model and count the bytes of its activations.

    The head may be on the disk, so it is bypassed and the size of its logits computed from their shape.

    Args:
        model: the model.
        calibration: the samples.
        stores: whether a step stores the activations of a whole pass for its backward pass.
    """
    largest = max(calibration.samples, key=lambda sample: sum(tensor.numel() for tensor in sample.values()))
    first = [tower.blocks[0].module for tower in model.towers]
    head = without_head(model.module)
    with (
        quiet_forward(model.module),
        bypassing(head),
        LiveBytes() as live,
        _arguments(model) as arguments,
        (peaks := _Peaks(model, live)).recording(head),
    ):
        model.loss(stack([largest]))
    outputs = peaks.outputs
    logits = sum(outputs.pop(module, 0) for module in head)
    forward, samples = peaks.forward + logits, calibration.samples
    others = min(len(by_shape(samples)) - 1, len({frozenset(sample) for sample in samples}))
    return SampleCost(
        states=sum(outputs[module] for module in first) + sum(tensor.nbytes for tensor in arguments.values()),
        outputs=sum(outputs.values()),
        block=peaks.block,
        forward=forward,
        training=_stored(model, stack([largest])) + max(peaks.block, logits) if stores else 0,
        logits=logits,
        learning=learning_cost(sum(outputs.values()), peaks.block, forward, others),
    )


def _stored(model: PrunableModel, batch: Batch) -> int:
    """The most bytes alive in a forward pass that stores what a backward pass through all weights needs."""
    with all_gradients(model.module), LiveBytes() as live:
        model.loss(batch)
    return live.peak


@contextmanager
def _arguments(model: PrunableModel) -> Iterator[dict[int, Tensor]]:
    """Collect the tensors that blocks receive beside the hidden states in a forward pass, each once."""
    found: dict[int, Tensor] = {}

    def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.update({id(tensor): tensor for tensor in extract_hidden(arguments, keywords)[0].tensors})

    with hooks(block.module.register_forward_pre_hook(note, with_kwargs=True) for block in model.blocks):
        yield found


class _Peaks:
    """The most bytes of activations in a forward pass so far.

    Attributes:
        outputs: {block or module of the head: bytes that it returned}.
        block: the most in a call of a block.
    """

    def __init__(self, model: PrunableModel, live: LiveBytes) -> None:
        """Begin before the pass.

        Args:
            model: the model.
            live: counts the bytes of all live tensors.
        """
        self.outputs: Counter[nn.Module] = Counter()
        self.block = 0
        self._model, self._live = model, live
        self._forward = 0
        self._weights = 0  # of offloaded blocks that are loaded now, which are not activations
        self._entered: list[tuple[int, int]] = []

    @property
    def forward(self) -> int:
        """The most at once."""
        return max(self._forward, self._live.peak - self._weights)

    @contextmanager
    def recording(self, head: Iterable[nn.Module]) -> Iterator[None]:
        """Record the forward pass that runs in this context; the head's modules are no blocks."""
        blocks = self._model.blocks
        entering = (block.module.register_forward_pre_hook(partial(self._enter, block)) for block in blocks)
        leaving = (block.module.register_forward_hook(self._leave) for block in blocks)
        counting = (module.register_forward_hook(self._count) for module in head)
        with hooks(entering), hooks(leaving), hooks(counting):
            yield

    def _enter(self, block: Block, *_: Any) -> None:
        live = self._live
        self._forward, start = self.forward, live.alive
        with self._model.placement.using(block):  # its weights are loaded before its activations are counted
            self._weights += live.alive - start
        self._entered.append((live.alive, live.peak))
        live.peak = live.alive

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        live, (alive, peak) = self._live, self._entered.pop()
        self.block = max(self.block, live.peak - alive)
        self._forward = self.forward
        live.peak = max(live.peak, peak) if self._entered else live.alive
        self._count(module, arguments, output)

    def _count(self, module: nn.Module, _: Any, output: Any) -> None:
        self.outputs[module] += first_tensor(output).nbytes
