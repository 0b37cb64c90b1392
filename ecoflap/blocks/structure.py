"""Learn from small batches how a model calls the blocks of a tower, and what forward passes can leave out.

A small batch of each kind runs through the whole model once. Then it runs again, each time with some blocks
bypassed, up to the block in question. Bypassed blocks put out numbers that have nothing to do with what they
would compute, except where an output is known. What enters the block all the same depends on nothing else,
whatever pruning makes of the bypassed blocks; where something differs, they have to be run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.blocks.bypass import Bypass, SubstituteForward, taking, without_head
from ecoflap.blocks.containers import equal
from ecoflap.blocks.finished_towers import FinishedTower, TowerPasses
from ecoflap.blocks.perturbation import disturbed, disturbing
from ecoflap.blocks.recorder import Captured, Left, Recorder
from ecoflap.blocks.standalone import layers_inside_their_blocks, require_alone
from ecoflap.console.telemetry import errors_suppressed
from ecoflap.data.batch import Batch
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower


@dataclass(frozen=True)
class Structure:
    """How a model calls the blocks of a tower.

    A block beside the first that is in neither set gets the output of the block before, and arguments that
    don't depend on blocks.

    Attributes:
        passes: how often each is called. Two samples of some batches show it; a later batch that runs the
            tower more often goes unnoticed, unless the tower is bypassed afterwards.
        bypasses: how to bypass blocks; those that make what others are given are not among them, and are run.
        from_output: blocks whose inputs the model makes from what the block before leaves: its output, and
            the containers that it was given.
        from_start: blocks whose inputs depend on other blocks as well.
        looped: what enters the first block depends on blocks that ran before it, in an earlier pass for one.
        backwards: some block runs after a later one, in another pass for one.
        writes: blocks write to tensors that they are given.
        bypassed: finished towers that need not be run.
    """

    passes: int
    bypasses: Mapping[nn.Module, Bypass]
    from_output: frozenset[int]
    from_start: frozenset[int]
    looped: bool
    backwards: bool
    writes: bool
    bypassed: tuple[FinishedTower, ...]


def learn(
    model: PrunableModel,
    tower: Tower,
    batch: Batch,
    others: Sequence[Batch],
    finished: Sequence[FinishedTower],
    dense: bool = False,
) -> Structure:
    """Learn it from small batches of each kind.

    Args:
        model: in evaluation mode.
        tower: its blocks.
        batch: as rich as any.
        others: each unlike that one where there are such; the last has the same inputs.
        finished: towers that were pruned before, in order.
        dense: what enters the blocks is not to depend on pruned weights.

    Raises:
        UserError: the forward pass never reaches the tower, what enters its blocks depends on what it is not
            to, or they compute something else when they are run alone.
    """
    kinds = [_record(model, tower, batch, finished)]
    require_alone(model, tower, kinds[0].plain, others)
    unlike = [_record(model, tower, other, finished) for other in others if _shapes(other) != _shapes(batch)]
    kinds += [
        kind for kind in unlike if any(kind.plain.entries.values())
    ]  # texts alone never reach an image tower
    for kind in kinds:
        kind.plain.left.clear()  # as large as what enters all blocks, which is compared from here on
    bypasses = {
        module: made
        for module, made in kinds[0].plain.bypasses.items()
        if made is not None and all(kind.plain.bypasses.get(module) is not None for kind in kinds)
    }
    learned = [_learn_from(kind, _Trials(model, tower, bypasses, kind), finished, dense) for kind in kinds]
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
class _Kind:
    """A small batch, and what is seen of a forward pass of it that leaves out nothing.

    Attributes:
        batch: its inputs.
        plain: what enters the tower's blocks.
        passes: what finished towers put out.
    """

    batch: Batch
    plain: Recorder
    passes: TowerPasses


def _record(model: PrunableModel, tower: Tower, batch: Batch, finished: Sequence[FinishedTower]) -> _Kind:
    """Run a batch through the whole model."""
    kind = _Kind(batch, Recorder(tower), TowerPasses([finished_tower.tower for finished_tower in finished]))
    head = without_head(model.module)
    with (
        layers_inside_their_blocks(model, tower),
        kind.plain.watching(),
        kind.passes.watching(),
        taking(head),
    ):
        model.loss(batch)
    return kind


def _shapes(batch: Batch) -> dict[str, torch.Size]:
    return {name: tensor.shape[1:] for name, tensor in batch.items()}


def _learn_from(kind: _Kind, trials: _Trials, finished: Sequence[FinishedTower], dense: bool) -> Structure:
    """What one kind of batch shows.

    Raises:
        UserError: with ``dense``, if what enters the blocks depends on pruned weights.
    """
    looped, anew = trials.captured_anew()
    # What blocks write into a tensor can't be handed over as what they put into a container can.
    carried = not looped and "other" not in kind.plain.written
    from_output = {index for index in anew if carried and trials.is_from_output(index)}
    bypassed = _bypassed(trials, finished, kind.passes, whole=bool(anew) or looped)
    if dense:
        _check_dense(trials, finished, kind.passes, bypassed)
    return Structure(
        passes=trials.passes,
        bypasses=trials.bypasses,
        from_output=frozenset(from_output),
        from_start=frozenset(anew - from_output),
        looped=looped,
        backwards=any(later < earlier for earlier, later in pairwise(kind.plain.order)),
        writes=bool(kind.plain.written),
        bypassed=tuple(finished[number] for number in bypassed),
    )


def _bypassed(
    trials: _Trials, finished: Sequence[FinishedTower], passes: TowerPasses, whole: bool
) -> list[int]:
    """The finished towers that need not be run."""
    chosen: list[int] = []
    for number in passes.current():
        if finished[number].outputs and trials.can_leave_out(
            _past(finished, passes, [*chosen, number]), whole
        ):
            chosen.append(number)
    return chosen


def _past(
    finished: Sequence[FinishedTower], passes: TowerPasses, numbers: Sequence[int]
) -> dict[nn.Module, SubstituteForward]:
    """SubstituteForward some of them, so that all but their ends is disturbed."""
    ways = (finished[number].ending_with(passes.outputs[number], disturbed) for number in numbers)
    return {module: way for of_tower in ways for module, way in of_tower.items()}


def _check_dense(
    trials: _Trials, finished: Sequence[FinishedTower], passes: TowerPasses, bypassed: Sequence[int]
) -> None:
    """Refuse a tower that reads what a pruned one puts out.

    Raises:
        UserError: it reads a tower that is pruned before it and can't be bypassed.
    """
    past, tower = _past(finished, passes, bypassed), trials.tower
    for number, finished_tower in enumerate(finished):
        if number not in bypassed and trials.reads(finished_tower.tower, past):
            raise UserError(
                f"propagate=dense prunes tower {finished_tower.tower.name} ({finished_tower.tower.path})"
                f" before {tower.name} ({tower.path}), which reads what it puts out; use propagate=pruned, or"
                " leave one of them out of towers"
            )


def leaving(
    bypasses: Mapping[nn.Module, Bypass],
    block: nn.Module,
    known: Iterable[Left],
    between: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> dict[nn.Module, SubstituteForward]:
    """SubstituteForward the blocks of a tower, one of which leaves what is known.

    Args:
        bypasses: how to bypass them.
        block: one of them.
        known: what it leaves in one call after the other.
        between: what the others make of their hidden states.
    """
    turn = iter(known)

    def leave(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        left = next(turn)
        left.call.hand_over(arguments, keywords)
        return bypasses[block].changed(lambda _: left.output.clone())(
            arguments, keywords
        )  # the model may write into it

    return {**{module: made.changed(between) for module, made in bypasses.items()}, block: leave}


class _Trials:
    """Forward passes of the small batch that leave something out, compared with the one that leaves out
    nothing.
    """

    def __init__(
        self, model: PrunableModel, tower: Tower, bypasses: Mapping[nn.Module, Bypass], kind: _Kind
    ) -> None:
        self.model, self.tower, self.bypasses = model, tower, bypasses
        self.batch, self.plain, self.passes = kind.batch, kind.plain, kind.plain.passes()

    def captured_anew(self) -> tuple[bool, set[int]]:
        """Whether the first block depends on blocks that ran before it; the blocks that can't be run on what
        was captured at first.
        """
        every = range(len(self.tower.blocks))
        bypasses = {module: made.changed(disturbed) for module, made in self.bypasses.items()}
        found = self._run(bypasses, every, self.tower.layers)
        looped, later = self.plain.returned and not self._same(found, [0], hidden=True), set(every[1:])
        if looped or "other" in self.plain.written:
            return looped, later
        dependent = {index for index in later if not self._same(found, [index], hidden=False)}
        behind_writers = {index for index in later if any(writer < index for writer in self.plain.writers)}
        return looped, self.plain.broken | dependent | behind_writers

    def is_from_output(self, index: int) -> bool:
        """Whether what enters a block depends on no block but through what the one before leaves."""
        block = self.tower.blocks[index - 1].module
        before = [entry.before for entry in self.plain.entries[index]]
        known = [left for left in before if left is not None]
        if len(known) < len(before) or any(
            one.module not in self.bypasses for one in self.tower.blocks[:index]
        ):
            return False
        return self._same(
            self._run(leaving(self.bypasses, block, known, disturbed), [index]), [index], hidden=True
        )

    def can_leave_out(self, past: Mapping[nn.Module, SubstituteForward], whole: bool) -> bool:
        """Whether finished towers can be bypassed so.

        Args:
            past: how.
            whole: run the tower's blocks, and compare the hidden states that enter each of them, not the
                first alone.
        """
        every = range(len(self.tower.blocks))
        if whole:
            return self._same(self._run(past, every), every, hidden=True)
        found = self._run({**self.bypasses, **past}, every)
        return self._same(found, [0], hidden=True) and self._same(found, every, hidden=False)

    def reads(self, other: Tower, past: Mapping[nn.Module, SubstituteForward]) -> bool:
        """Whether what enters the tower's blocks depends on the weights of another tower, with others
        bypassed.
        """
        every = range(len(self.tower.blocks))
        return bool(other.layers) and not self._same(self._run(past, every, other.layers), every, hidden=True)

    def _run(
        self,
        bypasses: Mapping[nn.Module, SubstituteForward],
        wanted: Collection[int],
        layers: Iterable[Layer] = (),
    ) -> Recorder:
        """Run the batch until all that is wanted is known, or until the model can't be run so."""
        found = Recorder(self.tower, self.passes, wanted, bool(self.plain.written))
        with suppress(Captured), errors_suppressed(), found.watching(), taking(bypasses), disturbing(layers):
            self.model.loss(self.batch)
        return found

    def _same(self, found: Recorder, blocks: Iterable[int], hidden: bool) -> bool:
        """Whether the same arguments, and the same hidden states if asked, entered some blocks."""
        return all(
            equal(
                [(entry.call, entry.hidden if hidden else None) for entry in found.entries[index]],
                [(entry.call, entry.hidden if hidden else None) for entry in self.plain.entries[index]],
            )
            for index in blocks
        )
