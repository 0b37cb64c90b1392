"""Forward passes of a small batch that skip blocks, compared with a complete pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ecoflap.blocks.bypass import Bypass, SubstituteForward, bypassing, without_head
from ecoflap.blocks.containers import equal
from ecoflap.blocks.finished_towers import FinishedTower, TowerPasses
from ecoflap.blocks.perturbation import perturbed, perturbing
from ecoflap.blocks.recorder import BlockOutput, CaptureComplete, LearningRecorder, Recorder
from ecoflap.blocks.standalone import require_layers_inside_blocks
from ecoflap.console.telemetry import errors_suppressed
from ecoflap.data.batch import Batch
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower


@dataclass(frozen=True)
class Reference:
    """A small batch with a complete forward pass of it, to compare others with.

    Attributes:
        batch: its inputs.
        plain: the inputs of the tower's blocks.
        passes: the outputs of the finished towers.
    """

    batch: Batch
    plain: LearningRecorder
    passes: TowerPasses


def record_reference(
    model: PrunableModel, tower: Tower, batch: Batch, finished: Sequence[FinishedTower]
) -> Reference:
    """Run a small batch through the whole model, and record what partial passes are compared with."""
    plain, passes = LearningRecorder(tower), TowerPasses([one.tower for one in finished])
    head = without_head(model.module)
    with (
        require_layers_inside_blocks(model, tower),
        plain.recording(),
        passes.recording(),
        bypassing(head),
    ):
        model.loss(batch)
    return Reference(batch, plain, passes)


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


class PartialPasses:
    """Forward passes of a small batch that skip something, compared with the complete one."""

    def __init__(
        self, model: PrunableModel, tower: Tower, bypasses: Mapping[nn.Module, Bypass], reference: Reference
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
