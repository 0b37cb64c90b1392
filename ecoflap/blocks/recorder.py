"""Record the inputs of a tower's blocks during one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ecoflap.blocks.block_call import BlockCall, extract_hidden, first_tensor
from ecoflap.blocks.bypass import Bypass, find_bypass
from ecoflap.blocks.containers import Contents, contents, tensors_in, version_of
from ecoflap.errors import UserError
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.losses import counted_tokens
from ecoflap.models.core.token_kinds import TokenKinds, kinds_in
from ecoflap.models.core.towers import Tower


class CaptureComplete(BaseException):
    """Ends a forward pass once all wanted inputs are known.

    It derives from BaseException so that no model code catches it.
    """


@dataclass(frozen=True)
class BlockOutput:
    """What one call of a block leaves.

    Attributes:
        output: the hidden states, [batch, tokens, features].
        call: the other arguments, with what the block wrote into them.
    """

    output: Tensor
    call: BlockCall


@dataclass(frozen=True)
class BlockInput:
    """What enters a block in one call.

    Attributes:
        call: the arguments beside the hidden states.
        hidden: the hidden states, [batch, tokens, features].
        counted: masks of the real tokens; see ``Stream``.
        kinds: the kinds of the tokens; None if the loss doesn't declare them.
        previous: the output of the block before; None where another block ran in between, and in passes that
            end early.
    """

    call: BlockCall
    hidden: Tensor
    counted: tuple[Tensor, ...]
    kinds: TokenKinds | None
    previous: BlockOutput | None


@dataclass(frozen=True)
class _Last:
    """The block that ran last: its index, its output, the version of that tensor, and a copy."""

    index: int
    output: Tensor
    version: int
    copy: BlockOutput | None

    def is_entering(self, index: int, hidden: Tensor) -> bool:
        """Whether a block receives this very output.

        Equal numbers in another tensor prove nothing: the model may have added zeros.
        """
        same = hidden is self.output or (
            hidden.data_ptr() == self.output.data_ptr()
            and hidden.shape == self.output.shape
            and hidden.stride() == self.output.stride()
        )
        return index == self.index + 1 and same and version_of(hidden) == self.version


class Recorder:
    """Records the inputs of a tower's blocks, and ends the forward pass once all wanted ones are known.

    The attributes from ``written`` on are learned in a pass that runs to its end.

    Attributes:
        tower: its blocks.
        expected: calls of each block per pass; 0 in a pass that runs to its end.
        inputs: the calls of each block, by its index.
        unchained: blocks that received something else than the output of the block before.
        revisited: whether the first block was called after another one.
        order: the index of the block of each call.
        written: the tensors that blocks wrote to: ``hidden`` for their hidden states, ``other`` for other
            arguments.
        writers: blocks that changed the contents of a container among their arguments.
        outputs: what each call of each block left, by its index.
        bypasses: how to bypass each block, None where it has to run.
    """

    def __init__(
        self, tower: Tower, passes: int = 0, wanted: Collection[int] | None = None, writes: bool = True
    ) -> None:
        """Prepare to record.

        Args:
            tower: its blocks.
            passes: how often each block is called; 0 to learn it, in a forward pass that runs to its end.
            wanted: the blocks to record; None for all.
            writes: whether blocks write to tensors among their arguments, so that copies are needed.
        """
        self.tower, self.expected = tower, passes
        indices = range(len(tower.blocks)) if wanted is None else wanted
        self.inputs: dict[int, list[BlockInput]] = {index: [] for index in indices}
        self.unchained: set[int] = set()
        self.revisited = False
        self.written: set[str] = set()
        self.writers: set[int] = set()
        self.outputs: dict[int, list[BlockOutput]] = {index: [] for index in self.inputs}
        self.bypasses: dict[nn.Module, Bypass | None] = {}
        self.order: list[int] = []
        self._last: _Last | None = None
        self._writes = writes
        self._copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._entered: tuple[Tensor, int, Tensor] | None = None
        self._given: Contents = []

    def recording(self) -> AbstractContextManager[None]:
        """Record the forward pass that runs in this context."""
        return hooks(self._watch())

    def _watch(self) -> Iterator[RemovableHandle]:
        for index, block in enumerate(self.tower.blocks):
            yield block.module.register_forward_pre_hook(self._before(index), with_kwargs=True)
            yield block.module.register_forward_hook(self._after(index), with_kwargs=True)

    def _before(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            call, hidden = extract_hidden(arguments, keywords)
            last = self._last
            chained = last is not None and last.is_entering(index, hidden)
            if index and not chained:
                self.unchained.add(index)
            self.revisited |= index == 0 and last is not None
            self.order.append(index)
            if index in self.inputs:
                self.inputs[index].append(self._block_input(index, call, hidden, chained))
            if self.expected and all(len(calls) == self.expected for calls in self.inputs.values()):
                raise CaptureComplete
            if not self.expected:
                self._given = [one for one in contents((arguments, keywords)) if isinstance(one[0], Tensor)]

        return record

    def _block_input(self, index: int, call: BlockCall, hidden: Tensor, chained: bool) -> BlockInput:
        hidden, last = self._copy_of_hidden(hidden), self._last
        previous = last.copy if last is not None and last.index == index - 1 else None
        if chained and previous is not None:  # share one copy of the same numbers
            previous = self.outputs[index - 1][-1] = replace(previous, output=hidden)
        kinds = kinds_in(self.tower.name, hidden)
        counted = counted_tokens(self.tower.kind)
        return BlockInput(self._copy_of_call(call), hidden, counted, kinds, previous)

    def _after(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def record(
            module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
        ) -> None:
            hidden = first_tensor(output)
            self._last = _Last(index, hidden, version_of(hidden), None)
            if self.expected:
                return
            call, given = extract_hidden(arguments, keywords)
            self.outputs[index].append(BlockOutput(hidden.clone(), self._copy_of_call(call)))
            self._last = replace(self._last, copy=self.outputs[index][-1])
            written = [tensor for tensor, version in self._given if version_of(tensor) != version]
            self.written |= {"hidden" if tensor is given else "other" for tensor in written}
            if [id(tensor) for tensor, _ in self._given] != list(map(id, tensors_in((arguments, keywords)))):
                self.writers.add(index)
            # One call that makes more than hidden states is enough: the block always has to run.
            if module not in self.bypasses or self.bypasses[module] is not None:
                self.bypasses[module] = find_bypass(arguments, keywords, call.key, output)

        return record

    def _copy_of_call(self, call: BlockCall) -> BlockCall:
        """The call as it is now, whatever is written into it later."""
        return call.copied(self._copy) if self._writes else call.copied()

    def _copy(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor, shared by all blocks that receive it until it is written to."""
        key = id(tensor), version_of(tensor)
        if key not in self._copies:
            self._copies[key] = tensor, tensor.clone()  # the tensor stays alive, so its id stays unique
        return self._copies[key][1]

    def _copy_of_hidden(self, hidden: Tensor) -> Tensor:
        """A copy of the hidden states, shared by bypassed blocks that return them unchanged."""
        known = self._entered
        if known is None or known[0] is not hidden or known[1] != version_of(hidden):
            known = self._entered = hidden, version_of(hidden), hidden.clone()
        return known[2]

    def passes(self) -> int:
        """How often each block was called.

        Raises:
            UserError: if some blocks were called more often than others, or never.
        """
        counts = [len(calls) for calls in self.inputs.values()]
        if min(counts) == 0:
            reached = sum(map(bool, counts))
            raise UserError(
                f"the calibration data never reach all blocks of tower {self.tower.name} ({self.tower.path}):"
                f" {reached} of {len(counts)} were called; leave it out of towers"
            )
        if len(set(counts)) > 1:
            raise UserError(
                f"the blocks of tower {self.tower.name} ({self.tower.path}) are called {min(counts)} to"
                f" {max(counts)} times per batch; leave it out of towers, or name lists of blocks that always"
                " run together with model.towers"
            )
        return counts[0]
