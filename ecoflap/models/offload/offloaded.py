"""Blocks that are stored elsewhere, and loaded to the device while in use.

A block's weights are loaded when the block runs or is worked on. While it runs, the next one is loaded, and
the one before is released; if it was changed, it is stored on the way. So two blocks are loaded at a time. In
a backward pass these are the present block and the one that it came from, whose gradients are still being
computed, and nothing is loaded ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from ecoflap.models.core.expert_slices import refresh
from ecoflap.models.core.finite_weights import require_finite
from ecoflap.models.core.towers import Block
from ecoflap.models.offload.ahead import Order, at_once, in_background
from ecoflap.models.offload.copies import Copies
from ecoflap.models.offload.placement import AT_A_TIME, Placement, own_parameters, placeholder


class Source(Protocol):
    """Storage of the weights of offloaded blocks."""

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A weight, on the CPU in the given dtype."""

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace the weights of a block."""


class Coming(NamedTuple):
    """A block on its way to the device.

    Attributes:
        name: of the block.
        found: its weights by name, and the event at which they have arrived.
        dropped: set once nobody needs it any more.
    """

    name: str
    found: Future[tuple[dict[str, Tensor], Any]]
    dropped: threading.Event


class Offloaded(Placement):
    """Blocks are stored in a source, and loaded to the device while in use.

    Attributes:
        slow: whether the source is read and written in the background, as that takes time.
    """

    slow = False

    def __init__(
        self,
        module: nn.Module,
        blocks: list[Block],
        source: Source,
        device: torch.device,
        folder: Path,
        reads_ahead: bool,
    ) -> None:
        """Offload the blocks; from now on their ``forward`` loads their weights.

        Args:
            module: the model.
            blocks: its blocks.
            source: storage of their weights.
            device: the device that blocks run on.
            folder: folder for what doesn't fit into memory.
            reads_ahead: whether the next block is loaded while one runs.
        """
        self.source, self.device, self.folder, self.reads_ahead = source, device, folder, reads_ahead
        self.parameters = own_parameters(module, blocks)
        self.dtypes = {
            block: {name: parameter.dtype for name, parameter in mine.items()}
            for block, mine in self.parameters.items()
        }
        self._modules = {block.name: block.module for block in blocks}
        self._order = Order([block.name for block in blocks])
        self._copies = Copies(device)
        self._loaded: list[str] = []  # names of blocks, least recently used first
        self._coming: Coming | None = None
        self._changed: set[str] = set()  # names of loaded blocks
        self._stored: Future[None] = at_once(lambda: None)
        self._checked: set[str] = set()
        for block in blocks:
            block.module.forward = self._entering(block, block.module.forward)

    def _entering(self, block: Block, forward: Callable[..., Any]) -> Callable[..., Any]:
        def enter(*arguments: Any, **keywords: Any) -> Any:
            self._load(block.name)
            return forward(*arguments, **keywords)

        return enter

    def _load(self, name: str) -> None:
        """Have a block's weights on the device, and the next block's on their way."""
        if name in self._loaded:
            self._loaded.remove(name)
            self._loaded.append(name)
            return
        backward = torch._C._current_graph_task_id() >= 0
        while len(self._loaded) >= (AT_A_TIME if backward else 1):
            self._release(self._loaded.pop(0))
        tensors, arrived = self._fetched(name).found.result()
        self._copies.await_on_device(arrived)
        for full, parameter in self.parameters[name].items():
            # In the parameter's dtype, as a scorer may hold half-precision weights in fp32.
            parameter.data = tensors.pop(full).to(parameter.dtype)
        self._loaded.append(name)
        self._order.use(name)
        if self.reads_ahead and not backward and (following := self._order.next()) not in self._loaded:
            self._coming = self._fetch(following)

    def _fetched(self, name: str) -> Coming:
        """The block that is to be loaded: on its way already, or sent for now."""
        coming, self._coming = self._coming, None
        if coming is not None and coming.name == name:
            return coming
        self._drop(coming)
        del coming
        return self._fetch(name)

    def _drop(self, coming: Coming | None) -> None:
        """Forget a block that is on its way; an error in it is found again by whoever needs it.

        Its tensors are removed by hand, as the thread that has read them refers to them a little longer.
        """
        if coming is not None:
            coming.dropped.set()
            if coming.found.exception() is None:
                coming.found.result()[0].clear()

    def _fetch(self, name: str) -> Coming:
        """Send for a block."""
        shapes = {full: (one.shape, one.dtype) for full, one in self.parameters[name].items()}
        dropped, room = threading.Event(), self._copies.room(shapes)
        return Coming(name, self._do(partial(self._read, name, room, dropped)), dropped)

    def _do(self, work: Callable[[], Any]) -> Future[Any]:
        return in_background(work) if self.slow else at_once(work)

    def _read(
        self, name: str, room: dict[str, Tensor], dropped: threading.Event
    ) -> tuple[dict[str, Tensor], Any]:
        """Read a block's weights, and copy each to the device, into the memory in ``room``, which is emptied.

        Raises:
            NumericalError: if a weight is not finite.
        """
        self._stored.result()  # the block that is being stored has to leave the memory first
        found = {}
        for full, dtype in self.dtypes[name].items():
            if dropped.is_set():
                room.clear()
                break
            tensor = self.source.read(full, dtype)
            if name not in self._checked:
                require_finite(full, [tensor])
            found[full] = self._copies.send(tensor, room.pop(full, None))
        else:
            self._checked.add(name)
        return found, self._copies.sent()

    def _release(self, name: str) -> None:
        """Take a block's weights from the device, and store them if they were changed."""
        if name in self._changed:
            self._store(name)
        for parameter in self.parameters[name].values():
            parameter.data = placeholder(parameter.shape, parameter.dtype)
        refresh(self._modules[name])

    def _store(self, name: str) -> None:
        """Begin to write a block's weights, which nobody changes from now on, to the source."""
        self._changed.discard(name)
        self._stored.result()
        weights = {full: parameter.data for full, parameter in self.parameters[name].items()}
        tensors, there = self._copies.bring_back(weights)
        self._stored = self._do(partial(self._write, name, tensors, there))

    def _write(self, name: str, tensors: Mapping[str, Tensor], there: Any) -> None:
        if self.slow and there is not None:
            there.synchronize()
        self.source.write(name, tensors)

    @contextmanager
    @override
    def using(self, block: Block) -> Iterator[None]:
        self._load(block.name)
        yield

    @override
    def changed(self, block: Block) -> None:
        """Write the block's weights to the source when it is released."""
        self._changed.add(block.name)

    def store_changes(self) -> None:
        """Write the changes to blocks that are still loaded, and wait until everything is written."""
        for name in sorted(self._changed):
            self._store(name)
        self._stored.result()
        self._copies.finish()

    @override
    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor, Iterable[Tensor]]]:
        """The entries of the module's state dict; those of blocks are read one at a time."""
        self.store_changes()
        offloaded = {name: dtype for mine in self.dtypes.values() for name, dtype in mine.items()}
        for name, tensor in module.state_dict().items():
            yield name, tensor, [self.source.read(name, offloaded[name]) if name in offloaded else tensor]
