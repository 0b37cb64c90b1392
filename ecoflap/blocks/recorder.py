"""Record the inputs of a tower's blocks during one forward pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

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
    """The block that ran last: its index, its output, and the version of that tensor."""

    index: int
    output: Tensor
    version: int

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

    Attributes:
        tower: its blocks.
        inputs: the calls of each wanted block, by its index.
        unchained: blocks that received something else than the output of the block before.
    """

    def __init__(self, tower: Tower, passes: float, wanted: Collection[int], writes: bool) -> None:
        """Prepare to record.

        Args:
            tower: its blocks.
            passes: how often each block is called; infinite in a forward pass that runs to its end.
            wanted: the blocks to record.
            writes: whether blocks write to tensors among their arguments, so that copies are needed.
        """
        self.tower, self._passes, self._writes = tower, passes, writes
        self.inputs: dict[int, list[BlockInput]] = {index: [] for index in wanted}
        self.unchained: set[int] = set()
        self._last: _Last | None = None
        self._copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._entered: tuple[Tensor, int, Tensor] | None = None

    def recording(self) -> AbstractContextManager[None]:
        """Record the forward pass that runs in this context."""
        return hooks(self._watch())

    def _watch(self) -> Iterator[RemovableHandle]:
        for index, block in enumerate(self.tower.blocks):
            yield block.module.register_forward_pre_hook(partial(self._before, index), with_kwargs=True)
            yield block.module.register_forward_hook(partial(self._after, index), with_kwargs=True)

    def _before(self, index: int, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        call, hidden = extract_hidden(arguments, keywords)
        chained = self._last is not None and self._last.is_entering(index, hidden)
        if index and not chained:
            self.unchained.add(index)
        if index in self.inputs:
            self.inputs[index].append(self._block_input(index, call, hidden, chained))
        if all(len(calls) == self._passes for calls in self.inputs.values()):
            raise CaptureComplete

    def _block_input(self, index: int, call: BlockCall, hidden: Tensor, chained: bool) -> BlockInput:
        hidden = self._copy_of_hidden(hidden)
        kinds, counted = kinds_in(self.tower.name, hidden), counted_tokens(self.tower.kind)
        return BlockInput(self._copy_of_call(call), hidden, counted, kinds, None)

    def _after(
        self, index: int, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        hidden = first_tensor(output)
        self._last = _Last(index, hidden, version_of(hidden))

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


class LearningRecorder(Recorder):
    """Records all inputs and outputs of a tower's blocks in a forward pass that runs to its end.

    Attributes:
        outputs: what each call of each block left, by its index.
        order: the index of the block of each call.
        revisited: whether the first block was called after another one.
        written: the tensors that were written to: ``hidden`` where a block wrote to its hidden states,
            ``other`` where it wrote to other arguments, ``later`` where anything did after a block had them.
        writers: blocks that changed the contents of a container among their arguments.
        bypasses: how to bypass each block, None where it has to run.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__(tower, math.inf, range(len(tower.blocks)), writes=True)
        self.outputs: dict[int, list[BlockOutput]] = {index: [] for index in self.inputs}
        self.order, self.revisited = list[int](), False
        self.written, self.writers = set[str](), set[int]()
        self.bypasses: dict[nn.Module, Bypass | None] = {}
        self._given: Contents = []
        self._left: list[tuple[Tensor, int, bool]] = []  # with the version, and whether it is hidden states

    @override
    @contextmanager
    def recording(self) -> Iterator[None]:
        with super().recording():
            yield
        later = {is_hidden for tensor, version, is_hidden in self._left if version_of(tensor) != version}
        if False in later:
            self.written.add("later")
        if True in later:
            self.bypasses = {key: one and replace(one, copies=True) for key, one in self.bypasses.items()}
        self._left.clear()

    @override
    def _before(
        self, index: int, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self.order.append(index)
        self.revisited |= index == 0 and self._last is not None
        super()._before(index, module, arguments, keywords)
        self._given = [one for one in contents((arguments, keywords)) if isinstance(one[0], Tensor)]

    @override
    def _block_input(self, index: int, call: BlockCall, hidden: Tensor, chained: bool) -> BlockInput:
        given = super()._block_input(index, call, hidden, chained)
        if self._last is None or self._last.index != index - 1:
            return given
        left = self.outputs[index - 1]
        if chained:  # share one copy of the same numbers
            left[-1] = replace(left[-1], output=given.hidden)
        return replace(given, previous=left[-1])

    @override
    def _after(
        self, index: int, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        super()._after(index, module, arguments, keywords, output)
        (call, given), made = extract_hidden(arguments, keywords), first_tensor(output)
        self.outputs[index].append(BlockOutput(made.clone(), self._copy_of_call(call)))
        written = [tensor for tensor, version in self._given if version_of(tensor) != version]
        self.written |= {"hidden" if tensor is given else "other" for tensor in written}
        self._left += [(tensor, version_of(tensor), tensor is given) for tensor, _ in self._given]
        self._left.append((made, version_of(made), True))
        if [id(tensor) for tensor, _ in self._given] != list(map(id, tensors_in((arguments, keywords)))):
            self.writers.add(index)
        # One call that makes more than hidden states is enough: the block always has to run.
        if module not in self.bypasses or self.bypasses[module] is not None:
            self.bypasses[module] = find_bypass(arguments, keywords, call.key, output)

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
