"""Check that blocks compute the same alone as inside the model.

A block that runs alone receives the arguments of an earlier forward pass. State that another block or the
model keeps in attributes of modules, instead of passing it as an argument, belongs to a different pass by
then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ecoflap.blocks.bypass import bypassing, without_head
from ecoflap.blocks.containers import equal
from ecoflap.blocks.layer_order import LayerOrder
from ecoflap.blocks.perturbation import perturbing
from ecoflap.blocks.recorder import BlockInput, BlockOutput, LearningRecorder
from ecoflap.blocks.residual_streams import ResidualStreams
from ecoflap.console.telemetry import errors_suppressed, out_of_memory
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.layer_names import first_and_count, skip_layers_advice
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower

ROUNDING = 1e-4  # of a feature's largest number: kernels may add in another order; half precision is coarser


@contextmanager
def require_layers_inside_blocks(model: PrunableModel, tower: Tower) -> Iterator[None]:
    """Refuse a model whose forward pass, in this context, calls a layer outside its own block.

    Raises:
        UserError: at the end of the context, if there are such layers.
    """
    running: list[nn.Module] = []
    outside: set[str] = set()

    def enter(module: nn.Module, _: object) -> None:
        running.append(module)

    def leave(*_: object) -> None:
        running.pop()

    def note(layer: Layer, own: nn.Module, *_: object) -> None:
        if running != [own]:
            outside.add(layer.name)

    def watch() -> Iterator[RemovableHandle]:
        for module in dict.fromkeys(block.module for block in tower.blocks):
            yield module.register_forward_pre_hook(enter)
            yield module.register_forward_hook(leave)
        for block in tower.blocks:
            for layer in block.layers:
                yield layer.module.register_forward_pre_hook(partial(note, layer, block.module))

    with hooks(watch()):
        yield
    if outside:
        names = [layer.name for layer in model.layers]
        raise UserError(
            f"the model calls {first_and_count(outside, names)} outside their own blocks, so what they read"
            f" is not known where a block is run alone; {skip_layers_advice(outside, names)}"
        )


def require_standalone(
    model: PrunableModel, tower: Tower, plain: LearningRecorder, others: Sequence[Batch]
) -> tuple[dict[int, LayerOrder], dict[int, ResidualStreams]]:
    """Refuse blocks that read state beside their arguments.

    Args:
        model: in evaluation mode.
        tower: its blocks.
        plain: inputs and outputs of the blocks in a forward pass that ran to its end.
        others: other batches to run first, so that blocks which read state find that of the last one.

    Returns:
        How each block calls its layers, and which of them write into a residual stream, by the block's index.

    Raises:
        UserError: if a block reads such state, or another batch runs the tower more often.
    """
    calls = max(_calls_with_perturbed_layers(model, tower, other) for other in others)
    if calls > plain.passes():
        raise UserError(
            f"one batch runs tower {tower.name} ({tower.path}) {plain.passes()} times and another {calls}"
            " times; calibrate on samples of one kind, or leave the tower out of towers"
        )
    recorded = {
        index: list(zip(plain.inputs[index], plain.outputs[index], strict=True)) for index in plain.inputs
    }
    orders = {index: LayerOrder(tower.blocks[index].layers) for index in recorded}
    residuals = {index: ResidualStreams(tower.blocks[index]) for index in recorded}
    # Running a block renews the state that it sets, so the blocks that read it have to run before.
    for index in reversed(plain.order):
        block, (given, left) = tower.blocks[index], recorded[index].pop()
        with orders[index].recording(), residuals[index].recording():
            same = _reproduces(block, given, left)
        if not same:
            raise UserError(
                f"{block.name} puts out something else when it is run alone on what it was given, because of"
                " random numbers, what modules leave behind in attributes, a context around it such as"
                f" autocast, or a hook that changes its inputs; leave tower {tower.name} out of towers, or"
                " choose what runs no block alone: pruner=magnitude, score=zeroth_order"
            )
    return orders, residuals


def _calls_with_perturbed_layers(model: PrunableModel, tower: Tower, batch: Batch) -> int:
    """Run a batch with every layer perturbed; returns the calls of the block that is called most often."""
    calls = Counter[nn.Module]()
    layers = [layer for one in model.every_tower for layer in one.layers]
    modules = dict.fromkeys(block.module for block in tower.blocks)
    counting = (
        module.register_forward_pre_hook(lambda module, _: calls.update([module])) for module in modules
    )
    with (
        hooks(counting),
        errors_suppressed(),
        perturbing(layers),
        bypassing(without_head(model.module)),
    ):
        model.loss(batch)
    return max(calls.values(), default=0)


def _reproduces(block: Block, given: BlockInput, left: BlockOutput) -> bool:
    """Whether a block alone returns the recorded output, and writes the same into its arguments."""
    call = given.call.copied(torch.clone)
    try:
        output = call.run(block.module, given.hidden.clone())
    except Exception as error:  # whatever a model's code raises on state of another pass
        if out_of_memory(error):
            raise
        return False
    return equal((output, call), (left.output, left.call), lambda one, other: bool(close(one, other)))


def close(once: Tensor, again: Tensor) -> Tensor:
    """Whether a second run gave the first one's numbers up to rounding: one boolean, on their device."""
    if not once.is_floating_point() or not once.numel():
        return (once == again).all()
    scale = once.abs().nan_to_num(0.0, 0.0, 0.0)
    largest = scale.flatten(0, -2).amax(0) if scale.ndim > 1 else scale.max()
    near = (once - again).abs() <= max(ROUNDING, 4 * torch.finfo(once.dtype).eps) * largest
    return (near | (once == again) | (once.isnan() & again.isnan())).all()
