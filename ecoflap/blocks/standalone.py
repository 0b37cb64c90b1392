"""Check that the blocks of a tower compute alone what they compute inside the model.

A block is run alone on what it was given once. State that a block before or the model itself keeps on
modules, instead of handing it over, is that of another forward pass by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ecoflap.blocks.bypass import taking, without_head
from ecoflap.blocks.containers import equal
from ecoflap.blocks.layer_calls import advice, some
from ecoflap.blocks.perturbation import disturbing
from ecoflap.blocks.recorder import Entry, Left, Recorder
from ecoflap.console.telemetry import errors_suppressed, out_of_memory
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower

ROUNDING = 1e-4  # of a feature's largest number: kernels may add in another order; half precision is coarser


@contextmanager
def layers_inside_their_blocks(model: PrunableModel, tower: Tower) -> Iterator[None]:
    """Watch a forward pass for layers that are called anywhere but in their own block.

    Raises:
        UserError: at the end, if there are any.
    """
    running: list[nn.Module] = []
    strays: set[str] = set()
    handles = []

    def enter(module: nn.Module, _: object) -> None:
        running.append(module)

    def leave(*_: object) -> None:
        running.pop()

    for module in dict.fromkeys(block.module for block in tower.blocks):
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    for block in tower.blocks:
        for layer in block.layers:

            def note(*_: object, name: str = layer.name, own: nn.Module = block.module) -> None:
                if running != [own]:
                    strays.add(name)

            handles.append(layer.module.register_forward_pre_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if strays:
        names = [layer.name for layer in model.layers]
        raise UserError(
            f"the model calls {some(strays, names)} outside their own blocks, so what they read is not known "
            f"where a block is run alone; {advice(strays, names)}"
        )


def require_alone(model: PrunableModel, tower: Tower, plain: Recorder, others: Sequence[Batch]) -> None:
    """Refuse blocks that read what they are not given.

    Args:
        model: in evaluation mode.
        tower: its blocks.
        plain: what entered and left them in a forward pass that ran to its end.
        others: other batches, whose passes leave their own state behind; the last one's is what blocks would
            find.

    Raises:
        UserError: a block reads what it is not given, or another batch runs the tower more often.
    """
    calls = max(_calls_of_a_disturbed_pass(model, tower, other) for other in others)
    if calls > plain.passes():
        raise UserError(
            f"one batch runs tower {tower.name} ({tower.path}) {plain.passes()} times and another {calls}"
            " times; calibrate on samples of one kind, or leave the tower out of towers"
        )
    seen = {index: list(zip(plain.entries[index], plain.left[index], strict=True)) for index in plain.entries}
    for index in reversed(plain.order):  # a block renews what it leaves behind; those that read it come first
        block, (entry, left) = tower.blocks[index], seen[index].pop()
        if not _leaves_the_same(block, entry, left):
            raise UserError(
                f"{block.name} puts out something else when it is run alone on what it was given, because of "
                f"what other modules leave behind in attributes; leave tower {tower.name} out of towers, or "
                "choose what runs no block alone: pruner=magnitude, score=zeroth_order"
            )


def _calls_of_a_disturbed_pass(model: PrunableModel, tower: Tower, batch: Batch) -> int:
    """Run a batch with other numbers in every layer; returns how often it called the block that it called
    most.
    """
    calls = Counter[nn.Module]()
    layers = [layer for one in model.every_tower for layer in one.layers]
    modules = dict.fromkeys(block.module for block in tower.blocks)
    handles = [
        module.register_forward_pre_hook(lambda module, _: calls.update([module])) for module in modules
    ]
    try:
        with errors_suppressed(), disturbing(layers), taking(without_head(model.module)):
            model.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    return max(calls.values(), default=0)


def _leaves_the_same(block: Block, entry: Entry, left: Left) -> bool:
    """Whether a block alone puts out what it did, and writes what it did into its arguments."""
    call = entry.call.copied(torch.clone)
    try:
        output = call.run(block.module, entry.hidden.clone())
    except Exception as error:  # whatever a model's code raises where state of another pass doesn't fit
        if out_of_memory(error):
            raise
        return False
    return equal((output, call), (left.output, left.call), lambda one, other: bool(close(one, other)))


def close(once: Tensor, again: Tensor) -> Tensor:
    """Whether a second run gave the numbers of the first, but for rounding: one truth value on their
    device.
    """
    if not once.is_floating_point() or not once.numel():
        return (once == again).all()
    scale = once.abs().nan_to_num(0.0, 0.0, 0.0)
    largest = scale.flatten(0, -2).amax(0) if scale.ndim > 1 else scale.max()
    near = (once - again).abs() <= max(ROUNDING, 4 * torch.finfo(once.dtype).eps) * largest
    return (near | (once == again) | (once.isnan() & again.isnan())).all()
