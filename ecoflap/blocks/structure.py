"""Learn from small batches how a model calls the blocks of a tower, and what forward passes can skip.

A small batch of each kind runs through the whole model once. Then it runs again, each time with some blocks
bypassed, up to the block in question. Bypassed blocks return numbers unrelated to what they would compute,
except where an output is known. An input that stays the same depends on nothing else, whatever pruning does
to the bypassed blocks; where it differs, they have to run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from ecoflap.blocks.bypass import Bypass, SubstituteForward, bypassing, without_head
from ecoflap.blocks.finished_towers import FinishedTower, TowerPasses
from ecoflap.blocks.layer_order import LayerOrder
from ecoflap.blocks.partial_passes import PartialPasses, Reference, record_reference
from ecoflap.blocks.perturbation import perturbed
from ecoflap.blocks.recorder import LearningRecorder
from ecoflap.blocks.residual_streams import ResidualStreams
from ecoflap.blocks.standalone import require_standalone
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower


@dataclass(frozen=True)
class Structure:
    """How a model calls the blocks of a tower.

    A block after the first that is in neither ``from_output`` nor ``from_start`` receives the output of the
    block before, and arguments that don't depend on blocks.

    Attributes:
        passes: how often each block is called for two samples. It is learned from some batches; a batch of
            other shapes that runs the tower more often, and isn't the longest, is noticed only if the tower
            is bypassed afterwards.
        bypasses: how to bypass blocks. Blocks that make arguments of other blocks are missing, and run.
        from_output: blocks whose inputs the model computes from what the block before leaves: its output, and
            the containers among its arguments.
        from_start: blocks whose inputs depend on other blocks as well.
        looped: the input of the first block depends on blocks that ran before it, such as in an earlier pass.
        backwards: some block runs after a later one, such as in another pass.
        writes: blocks, or the model between them, write to tensors among the arguments of blocks.
        bypassed: finished towers that need not run.
        layer_orders: how each block calls its layers, by its index.
        residuals: which layers of each block write into a residual stream, by its index.
        per_sample: calls of each block that each further sample of a batch adds, as where a model runs the
            tower picture by picture.
    """

    passes: int
    bypasses: Mapping[nn.Module, Bypass]
    from_output: frozenset[int]
    from_start: frozenset[int]
    looped: bool
    backwards: bool
    writes: bool
    bypassed: tuple[FinishedTower, ...]
    layer_orders: Mapping[int, LayerOrder]
    residuals: Mapping[int, ResidualStreams]
    per_sample: int = 0

    def calls(self, samples: int) -> int:
        """How often each block is called for a batch of some samples, two or more."""
        return self.passes + self.per_sample * max(0, samples - 2)


class Shown(NamedTuple):
    """What one small batch shows of a ``Structure``; ``bypassed`` are indices of finished towers."""

    looped: bool
    backwards: bool
    writes: bool
    from_output: set[int]
    from_start: set[int]
    bypassed: set[int]


def learn_structure(
    model: PrunableModel,
    tower: Tower,
    batch: Batch,
    others: Sequence[Batch],
    finished: Sequence[FinishedTower],
    dense: bool = False,
) -> Structure:
    """Learn the structure of a tower from small batches of each kind.

    Args:
        model: in evaluation mode.
        tower: its blocks.
        batch: the batch with the most inputs.
        others: batches that differ from it, where there are any; the last one has the same inputs.
        finished: towers that were pruned before, in order.
        dense: refuse a tower whose inputs depend on pruned weights.

    Raises:
        UserError: if the forward pass never reaches the tower, blocks compute something else when they run
            alone, or, with ``dense``, inputs depend on pruned weights.
    """
    references = [record_reference(model, tower, batch, finished)]
    layer_orders, residuals = require_standalone(model, tower, references[0].plain, others)
    unlike = [
        record_reference(model, tower, other, finished)
        for other in others
        if _shapes(other) != _shapes(batch)
    ]
    # Batches of text alone never reach an image tower.
    references += [reference for reference in unlike if any(reference.plain.inputs.values())]
    for reference in references:
        reference.plain.outputs.clear()  # as large as the inputs, which alone are compared from here on
    bypasses = _common_bypasses([reference.plain for reference in references])
    shown = [
        _learn_from(reference, PartialPasses(model, tower, bypasses, reference), finished, dense)
        for reference in references
    ]
    from_start = frozenset[int]().union(*(one.from_start for one in shown))
    bypassed = set.intersection(*(one.bypassed for one in shown))
    return Structure(
        passes=references[0].plain.passes(),
        bypasses=bypasses,
        from_output=frozenset[int]().union(*(one.from_output for one in shown)) - from_start,
        from_start=from_start,
        looped=any(one.looped for one in shown),
        backwards=any(one.backwards for one in shown),
        writes=any(one.writes for one in shown),
        bypassed=tuple(finished[number] for number in sorted(bypassed)),
        layer_orders=layer_orders,
        residuals=residuals,
    )


def calls_of_first_block(
    model: PrunableModel, tower: Tower, batch: Batch, bypasses: Mapping[nn.Module, SubstituteForward]
) -> int:
    """How often a forward pass, in which some blocks are bypassed, calls the first block of a tower."""
    called: list[nn.Module] = []
    with (
        tower.blocks[0].module.register_forward_pre_hook(lambda block, _: called.append(block)),
        bypassing({**without_head(model.module), **bypasses}),
    ):
        model.loss(batch)
    return len(called)


def _shapes(batch: Batch) -> dict[str, torch.Size]:
    return {name: tensor.shape[1:] for name, tensor in batch.items()}


def _common_bypasses(recorders: Sequence[LearningRecorder]) -> dict[nn.Module, Bypass]:
    """The first recorder's bypasses of the blocks that all recorders found one for."""
    common: dict[nn.Module, Bypass] = {}
    for module in recorders[0].bypasses:
        found = [bypass for one in recorders if (bypass := one.bypasses.get(module)) is not None]
        if len(found) == len(recorders):
            common[module] = replace(found[0], copies=any(bypass.copies for bypass in found))
    return common


def _learn_from(
    reference: Reference, partial: PartialPasses, finished: Sequence[FinishedTower], dense: bool
) -> Shown:
    """What one small batch shows of the structure.

    Raises:
        UserError: if inputs of the blocks depend on pruned weights, with ``dense``.
    """
    looped, recaptured = partial.recaptured()
    # The contents of a container can be passed to another call; what blocks write into a tensor can't.
    chained = not looped and "other" not in reference.plain.written
    from_output = {index for index in recaptured if chained and partial.is_from_output(index)}
    bypassed = _bypassed(partial, finished, reference.passes, whole=bool(recaptured) or looped)
    if dense:
        _check_dense(partial, finished, reference.passes, bypassed)
    backwards = any(later < earlier for earlier, later in pairwise(reference.plain.order))
    writes = bool(reference.plain.written)
    return Shown(looped, backwards, writes, from_output, recaptured - from_output, bypassed)


def _bypassed(
    partial: PartialPasses, finished: Sequence[FinishedTower], passes: TowerPasses, whole: bool
) -> set[int]:
    """The finished towers that need not run."""
    chosen: set[int] = set()
    for number in passes.independent():
        if not finished[number].outputs:
            continue
        if partial.can_bypass(_bypass_towers(finished, passes, {*chosen, number}), whole):
            chosen.add(number)
    return chosen


def _bypass_towers(
    finished: Sequence[FinishedTower], passes: TowerPasses, numbers: Collection[int]
) -> dict[nn.Module, SubstituteForward]:
    """Forwards that bypass some finished towers and perturb all but their last outputs."""
    forwards: dict[nn.Module, SubstituteForward] = {}
    for number in numbers:
        forwards |= finished[number].bypass_with(passes.outputs[number], perturbed)
    return forwards


def _check_dense(
    partial: PartialPasses, finished: Sequence[FinishedTower], passes: TowerPasses, bypassed: Collection[int]
) -> None:
    """Refuse a tower that reads the output of a pruned one.

    Raises:
        UserError: if it reads a tower that is pruned before it and can't be bypassed.
    """
    forwards, tower = _bypass_towers(finished, passes, bypassed), partial.tower
    for number, finished_tower in enumerate(finished):
        if number not in bypassed and partial.depends_on(finished_tower.tower, forwards):
            raise UserError(
                f"propagate=dense prunes tower {finished_tower.tower.name} ({finished_tower.tower.path})"
                f" before {tower.name} ({tower.path}), which reads what it puts out; use propagate=pruned, or"
                " leave one of them out of towers"
            )
