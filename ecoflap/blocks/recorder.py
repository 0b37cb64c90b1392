"""Record what enters the blocks of a tower during one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ecoflap.blocks.block_call import BlockCall, first_tensor, take_out_hidden
from ecoflap.blocks.bypass import Bypass, find_bypass
from ecoflap.blocks.containers import Contents, contents, tensors_in, version_of
from ecoflap.errors import UserError
from ecoflap.models.core.losses import counted_tokens
from ecoflap.models.core.towers import Tower


class Captured(BaseException):
    """Ends a forward pass that has shown enough; no model code can mistake it for an error of its own."""


@dataclass(frozen=True)
class Left:
    """What a block leaves in one call.

    Attributes:
        output: the hidden states.
        call: the other arguments, with what the block wrote into them.
    """

    output: Tensor
    call: BlockCall


@dataclass(frozen=True)
class Entry:
    """What enters a block in one call.

    Attributes:
        call: the arguments beside the hidden states.
        hidden: the hidden states.
        counted: which tokens are real; see ``Stream``.
        before: what the block before left; null where another block ran in between, and in passes that end
            early.
    """

    call: BlockCall
    hidden: Tensor
    counted: tuple[Tensor, ...]
    before: Left | None


@dataclass(frozen=True)
class _Last:
    """The output of the block that ran last, how often it had been written to, and a copy of what the block
    left.
    """

    index: int
    output: Tensor
    version: int
    left: Left | None

    def is_entering(self, index: int, hidden: Tensor) -> bool:
        """Whether a block is given this very output. Equal numbers elsewhere prove nothing: zeros may have
        been added.
        """
        same = hidden is self.output or (
            hidden.data_ptr() == self.output.data_ptr()
            and hidden.shape == self.output.shape
            and hidden.stride() == self.output.stride()
        )
        return index == self.index + 1 and same and version_of(hidden) == self.version


class Recorder:
    """Records what enters the blocks of a tower, and ends the forward pass when all that is wanted of it is
    known.

    Attributes:
        entries: {block: its calls}.
        broken: blocks that got something else than the output of the block before.
        returned: the first block was called after another one.
        written: the tensors that blocks wrote to: ``hidden`` for their hidden states, ``other`` for other
            arguments. Learned, like the following, in a pass that runs to its end.
        writers: blocks that put something into a container that they were given.
        left: {block: what it left in each of its calls}.
        order: the block of each call.
        bypasses: {block: how to bypass it}, null where it has to be run.
    """

    def __init__(
        self, tower: Tower, passes: int = 0, wanted: Collection[int] | None = None, writes: bool = True
    ) -> None:
        """Get ready.

        Args:
            tower: its blocks.
            passes: how often they are called; 0 where that is to be learned, and the forward pass runs to its
                end.
            wanted: the blocks whose calls are kept; null for all.
            writes: blocks write to tensors that they are given, so that copies are kept.
        """
        self.tower, self.expected = tower, passes
        self.entries: dict[int, list[Entry]] = {
            index: [] for index in (range(len(tower.blocks)) if wanted is None else wanted)
        }
        self.broken: set[int] = set()
        self.returned = False
        self.written: set[str] = set()
        self.writers: set[int] = set()
        self.left: dict[int, list[Left]] = {index: [] for index in self.entries}
        self.bypasses: dict[nn.Module, Bypass | None] = {}
        self._last: _Last | None = None
        self.order: list[int] = []
        self._writes = writes
        self._copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._entered: tuple[Tensor, int, Tensor] | None = None
        self._given: Contents = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record what happens meanwhile."""
        handles = []
        for index, block in enumerate(self.tower.blocks):
            handles.append(block.module.register_forward_pre_hook(self._before(index), with_kwargs=True))
            handles.append(block.module.register_forward_hook(self._after(index), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            call, hidden = take_out_hidden(arguments, keywords)
            last = self._last
            chained = last is not None and last.is_entering(index, hidden)
            if index and not chained:
                self.broken.add(index)
            self.returned |= index == 0 and last is not None
            self.order.append(index)
            if index in self.entries:
                kept, before = (
                    self._copy_of_hidden(hidden),
                    last.left if last is not None and last.index == index - 1 else None,
                )
                if chained and before is not None:
                    before = self.left[index - 1][-1] = replace(
                        before, output=kept
                    )  # not two copies of the same numbers
                self.entries[index].append(Entry(self._kept(call), kept, counted_tokens(), before))
            if self.expected and all(len(calls) == self.expected for calls in self.entries.values()):
                raise Captured
            if not self.expected:
                self._given = [one for one in contents((arguments, keywords)) if isinstance(one[0], Tensor)]

        return record

    def _after(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def record(
            module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
        ) -> None:
            hidden = first_tensor(output)
            self._last = _Last(index, hidden, version_of(hidden), None)
            if self.expected:
                return
            call, given = take_out_hidden(arguments, keywords)
            self.left[index].append(Left(hidden.clone(), self._kept(call)))
            self._last = replace(self._last, left=self.left[index][-1])
            written = [tensor for tensor, version in self._given if version_of(tensor) != version]
            self.written |= {"hidden" if tensor is given else "other" for tensor in written}
            if [id(tensor) for tensor, _ in self._given] != list(map(id, tensors_in((arguments, keywords)))):
                self.writers.add(index)
            if (
                self.bypasses.get(module, ()) is not None
            ):  # one call that makes more than hidden states settles it
                self.bypasses[module] = find_bypass(arguments, keywords, call.place, output)

        return record

    def _kept(self, call: BlockCall) -> BlockCall:
        """The call as it is now, whatever is written into it later."""
        return call.copied(self._copy) if self._writes else call.copied()

    def _copy(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor, one for all blocks that get it until somebody writes to it."""
        key = id(tensor), version_of(tensor)
        if key not in self._copies:
            self._copies[key] = tensor, tensor.clone()  # an id belongs to a tensor as long as it is alive
        return self._copies[key][1]

    def _copy_of_hidden(self, hidden: Tensor) -> Tensor:
        """A copy of the hidden states; the last one while bypassed blocks hand them through."""
        known = self._entered
        if known is None or known[0] is not hidden or known[1] != version_of(hidden):
            known = self._entered = hidden, version_of(hidden), hidden.clone()
        return known[2]

    def passes(self) -> int:
        """How often each block was called.

        Raises:
            UserError: some more often than others, or never.
        """
        counts = [len(calls) for calls in self.entries.values()]
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
