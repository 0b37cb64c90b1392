"""Learn from small batches how a model calls the blocks of a tower, and what forward passes can skip.

A small batch of each kind runs through the whole model once. Then it runs again, each time with some blocks
bypassed, up to the block in question. Bypassed blocks return numbers unrelated to what they would compute,
except where an output is known. An input that stays the same depends on nothing else, whatever pruning does
to the bypassed blocks; where it differs, they have to run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.blocks.bypass import Bypass, SubstituteForward, bypassing, without_head
from ecoflap.blocks.containers import equal
from ecoflap.blocks.finished_towers import FinishedTower, TowerPasses
from ecoflap.blocks.perturbation import perturbed, perturbing
from ecoflap.blocks.recorder import BlockOutput, CaptureComplete, Recorder
from ecoflap.blocks.standalone import require_layers_inside_blocks, require_standalone
from ecoflap.console.telemetry import errors_suppressed
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower


@dataclass(frozen=True)
class Structure:
    """How a model calls the blocks of a tower.

    A block after the first that is in neither ``from_output`` nor ``from_start`` receives the output of the
    block before, and arguments that don't depend on blocks.

    Attributes:
        passes: how often each block is called per batch. It is learned from two samples of some batches; a
            later batch that runs the tower more often is noticed only if the tower is bypassed afterwards.
        bypasses: how to bypass blocks. Blocks that make arguments of other blocks are missing, and run.
        from_output: blocks whose inputs the model computes from what the block before leaves: its output, and
            the containers among its arguments.
        from_start: blocks whose inputs depend on other blocks as well.
        looped: the input of the first block depends on blocks that ran before it, such as in an earlier pass.
        backwards: some block runs after a later one, such as in another pass.
        writes: blocks write to tensors among their arguments.
        bypassed: finished towers that need not run.
    """

    passes: int
    bypasses: Mapping[nn.Module, Bypass]
    from_output: frozenset[int]
    from_start: frozenset[int]
    looped: bool
    backwards: bool
    writes: bool
    bypassed: tuple[FinishedTower, ...]


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
    references = [_record(model, tower, batch, finished)]
    require_standalone(model, tower, references[0].plain, others)
    unlike = [_record(model, tower, other, finished) for other in others if _shapes(other) != _shapes(batch)]
    # Batches of text alone never reach an image tower.
    references += [reference for reference in unlike if any(reference.plain.inputs.values())]
    for reference in references:
        reference.plain.outputs.clear()  # as large as the inputs, which alone are compared from here on
    bypasses = _common_bypasses([reference.plain for reference in references])
    learned = [
        _learn_from(reference, _Trials(model, tower, bypasses, reference), finished, dense)
        for reference in references
    ]
    from_start = frozenset[int]().union(*(one.from_start for one in learned))
    bypassed = [{id(finished_tower) for finished_tower in one.bypassed} for one in learned]
    return Structure(
        passes=learned[0].passes,
        bypasses=bypasses,
        from_output=frozenset[int]().union(*(one.from_output for one in learned)) - from_start,
        from_start=from_start,
        looped=any(one.looped for one in learned),
        backwards=any(one.backwards for one in learned),
        writes=any(one.writes for one in learned),
        bypassed=tuple(
            finished_tower
            for finished_tower in learned[0].bypassed
            if all(id(finished_tower) in ids for ids in bypassed)
        ),
    )


@dataclass(frozen=True)
class _Reference:
    """A small batch with a complete forward pass of it, to compare others with.

    Attributes:
        batch: its inputs.
        plain: the inputs of the tower's blocks.
        passes: the outputs of the finished towers.
    """

    batch: Batch
    plain: Recorder
    passes: TowerPasses


def _record(
    model: PrunableModel, tower: Tower, batch: Batch, finished: Sequence[FinishedTower]
) -> _Reference:
    """Run a batch through the whole model."""
    plain, passes = Recorder(tower), TowerPasses([finished_tower.tower for finished_tower in finished])
    head = without_head(model.module)
    with (
        require_layers_inside_blocks(model, tower),
        plain.recording(),
        passes.recording(),
        bypassing(head),
    ):
        model.loss(batch)
    return _Reference(batch, plain, passes)


def _shapes(batch: Batch) -> dict[str, torch.Size]:
    return {name: tensor.shape[1:] for name, tensor in batch.items()}


def _common_bypasses(recorders: Sequence[Recorder]) -> dict[nn.Module, Bypass]:
    """The first recorder's bypasses of the blocks that all recorders found one for."""
    return {
        module: bypass
        for module, bypass in recorders[0].bypasses.items()
        if bypass is not None and all(one.bypasses.get(module) is not None for one in recorders)
    }


def _learn_from(
    reference: _Reference, trials: _Trials, finished: Sequence[FinishedTower], dense: bool
) -> Structure:
    """The structure that one small batch shows.

    Raises:
        UserError: if inputs of the blocks depend on pruned weights, with ``dense``.
    """
    looped, recaptured = trials.recaptured()
    # The contents of a container can be passed to another call; what blocks write into a tensor can't.
    chained = not looped and "other" not in reference.plain.written
    from_output = {index for index in recaptured if chained and trials.is_from_output(index)}
    bypassed = _bypassed(trials, finished, reference.passes, whole=bool(recaptured) or looped)
    if dense:
        _check_dense(trials, finished, reference.passes, bypassed)
    return Structure(
        passes=trials.passes,
        bypasses=trials.bypasses,
        from_output=frozenset(from_output),
        from_start=frozenset(recaptured - from_output),
        looped=looped,
        backwards=any(later < earlier for earlier, later in pairwise(reference.plain.order)),
        writes=bool(reference.plain.written),
        bypassed=tuple(finished[number] for number in bypassed),
    )


def _bypassed(
    trials: _Trials, finished: Sequence[FinishedTower], passes: TowerPasses, whole: bool
) -> list[int]:
    """The finished towers that need not run."""
    chosen: list[int] = []
    for number in passes.independent():
        if not finished[number].outputs:
            continue
        if trials.can_bypass(_bypass_towers(finished, passes, [*chosen, number]), whole):
            chosen.append(number)
    return chosen


def _bypass_towers(
    finished: Sequence[FinishedTower], passes: TowerPasses, numbers: Sequence[int]
) -> dict[nn.Module, SubstituteForward]:
    """Forwards that bypass some finished towers and perturb all but their last outputs."""
    forwards: dict[nn.Module, SubstituteForward] = {}
    for number in numbers:
        forwards |= finished[number].bypass_with(passes.outputs[number], perturbed)
    return forwards


def _check_dense(
    trials: _Trials, finished: Sequence[FinishedTower], passes: TowerPasses, bypassed: Sequence[int]
) -> None:
    """Refuse a tower that reads the output of a pruned one.

    Raises:
        UserError: if it reads a tower that is pruned before it and can't be bypassed.
    """
    forwards, tower = _bypass_towers(finished, passes, bypassed), trials.tower
    for number, finished_tower in enumerate(finished):
        if number not in bypassed and trials.depends_on(finished_tower.tower, forwards):
            raise UserError(
                f"propagate=dense prunes tower {finished_tower.tower.name} ({finished_tower.tower.path})"
                f" before {tower.name} ({tower.path}), which reads what it puts out; use propagate=pruned, or"
                " leave one of them out of towers"
            )


def bypass_with_output(
    bypasses: Mapping[nn.Module, Bypass],
    block: nn.Module,
    outputs: Iterable[BlockOutput],
    change: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> dict[nn.Module, SubstituteForward]:
    """Forwards that bypass the blocks of a tower, one of which returns known outputs.

    Args:
        bypasses: how to bypass the blocks.
        block: the block whose outputs are known.
        outputs: what it leaves, call by call.
        change: what the other blocks do to their hidden states.

    Returns:
        The substitute forward of each block.
    """
    remaining = iter(outputs)

    def stored(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        left = next(remaining)
        left.call.fill_containers(arguments, keywords)
        hidden = left.output.clone()  # the model may write into it
        return bypasses[block].substitute(lambda _: hidden)(arguments, keywords)

    return {**{module: bypass.substitute(change) for module, bypass in bypasses.items()}, block: stored}


class _Trials:
    """Forward passes of a small batch that skip something, compared with the complete one."""

    def __init__(
        self, model: PrunableModel, tower: Tower, bypasses: Mapping[nn.Module, Bypass], reference: _Reference
    ) -> None:
        self.model, self.tower, self.bypasses = model, tower, bypasses
        self.batch, self.plain, self.passes = reference.batch, reference.plain, reference.plain.passes()

    def recaptured(self) -> tuple[bool, set[int]]:
        """Find the blocks that can't run on the arguments of the first capture.

        Returns:
            Whether the first block depends on blocks that ran before it, and the blocks whose inputs have to
            be captured again.
        """
        every = range(len(self.tower.blocks))
        forwards = {module: bypass.substitute(perturbed) for module, bypass in self.bypasses.items()}
        found = self._run(forwards, every, self.tower.layers)
        looped, later = self.plain.revisited and not self._same(found, [0], hidden=True), set(every[1:])
        if looped or "other" in self.plain.written:
            return looped, later
        dependent = {index for index in later if not self._same(found, [index], hidden=False)}
        after_writers = {index for index in later if any(writer < index for writer in self.plain.writers)}
        return looped, self.plain.unchained | dependent | after_writers

    def is_from_output(self, index: int) -> bool:
        """Whether a block's inputs depend on other blocks only through what the block before leaves."""
        block = self.tower.blocks[index - 1].module
        previous = [given.previous for given in self.plain.inputs[index]]
        known = [left for left in previous if left is not None]
        if len(known) < len(previous):
            return False
        if any(one.module not in self.bypasses for one in self.tower.blocks[:index]):
            return False
        found = self._run(bypass_with_output(self.bypasses, block, known, perturbed), [index])
        return self._same(found, [index], hidden=True)

    def can_bypass(self, forwards: Mapping[nn.Module, SubstituteForward], whole: bool) -> bool:
        """Whether the tower's inputs stay the same when finished towers are bypassed.

        Args:
            forwards: the substitute forwards of their blocks.
            whole: run the tower's blocks, and compare the hidden states that enter each of them instead of
                those that enter the first.
        """
        every = range(len(self.tower.blocks))
        if whole:
            return self._same(self._run(forwards, every), every, hidden=True)
        found = self._run({**self.bypasses, **forwards}, every)
        return self._same(found, [0], hidden=True) and self._same(found, every, hidden=False)

    def depends_on(self, other: Tower, forwards: Mapping[nn.Module, SubstituteForward]) -> bool:
        """Whether the tower's inputs depend on the weights of another tower.

        Args:
            other: the tower in question.
            forwards: the substitute forwards of towers that are bypassed.
        """
        every = range(len(self.tower.blocks))
        if not other.layers:
            return False
        return not self._same(self._run(forwards, every, other.layers), every, hidden=True)

    def _run(
        self,
        forwards: Mapping[nn.Module, SubstituteForward],
        wanted: Collection[int],
        layers: Iterable[Layer] = (),
    ) -> Recorder:
        """Run the batch until all wanted inputs are known, or the model fails.

        Args:
            forwards: the substitute forwards of bypassed blocks.
            wanted: the blocks whose inputs to record.
            layers: the layers to perturb.
        """
        found = Recorder(self.tower, self.passes, wanted, bool(self.plain.written))
        with (
            suppress(CaptureComplete),
            errors_suppressed(),
            found.recording(),
            bypassing(forwards),
            perturbing(layers),
        ):
            self.model.loss(self.batch)
        return found

    def _same(self, found: Recorder, blocks: Iterable[int], hidden: bool) -> bool:
        """Whether the same arguments entered some blocks; with ``hidden``, the same hidden states too."""

        def inputs_of(recorder: Recorder, index: int) -> list[Any]:
            return [(given.call, given.hidden if hidden else None) for given in recorder.inputs[index]]

        return all(equal(inputs_of(found, index), inputs_of(self.plain, index)) for index in blocks)
