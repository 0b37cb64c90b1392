"""What a pruner needs to know about the inputs of a layer, gathered while its block is dense.

Layers that read the same tensor (q, k and v; gate and up) share one statistic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ecoflap.blocks.containers import version_of
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.ops import InverseFactor, inverse_factor

# rows of a Gram matrix per product: wide enough for full speed, narrow enough to leave most of the lower half
# out
STRIP = 256


class Enough(BaseException):
    """Ends the run of a block when the inputs of all its layers are known; no model code can mistake it for
    an error of its own.
    """


Own = TypeVar("Own", bound="Statistic")


class Statistic(Protocol):
    """Gathered from inputs [tokens, cols], batch by batch.

    A new one derives from this class and needs its own ``__init__``, ``update`` and ``output_energy``.

    Attributes:
        sum: what is summed over tokens, [cols, ...].
        tokens: how many there were.
        storable: the sums are [cols], small enough to be kept for other runs.
    """

    sum: Tensor
    tokens: int
    storable: ClassVar[bool] = False

    def __init__(self, cols: int, device: torch.device) -> None:
        """Begin with no tokens."""

    def update(self, inputs: Tensor) -> None:
        """Take the inputs [tokens, cols] of one more batch."""

    def output_energy(self, weight: Tensor) -> float:
        """Mean over tokens of ||W x||^2 for a weight [rows, cols]; what the relative error is measured in."""

    @classmethod
    def size_of(cls, cols: Sequence[int]) -> int:
        """Bytes for the layers of one block, each with so many input columns and an input of its own."""
        return 4 * sum(cols)

    def kept(self) -> Tensor:
        """The sums and the number of tokens, [cols + 1], fp64, on the CPU: nothing is rounded."""
        return torch.cat([self.sum.cpu().double(), torch.tensor([float(self.tokens)], dtype=torch.float64)])

    @classmethod
    def restored(cls: type[Own], kept: Tensor, device: torch.device) -> Own:
        """The statistic that was kept, on a device, which need not have fp64."""
        statistic = cls(len(kept) - 1, device)
        statistic.sum, statistic.tokens = kept[:-1].float().to(device), int(kept[-1])
        return statistic


class MeanSquare(Statistic):
    """Mean square of each input column, [cols]: the diagonal of the Gram matrix, all that Wanda needs."""

    storable: ClassVar[bool] = True

    def __init__(self, cols: int, device: torch.device) -> None:
        self.sum = torch.zeros(cols, device=device)
        self.tokens = 0

    def update(self, inputs: Tensor) -> None:
        """Add the squares of inputs [tokens, cols]."""
        self.sum += torch.linalg.vector_norm(inputs, dim=0, dtype=torch.float32).square()
        self.tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        """Mean over tokens, [cols]."""
        return self.sum / self.tokens

    def output_energy(self, weight: Tensor) -> float:
        """Mean of ||W x||^2 as if the columns of x were uncorrelated."""
        return float((weight.float().square() @ self.value).sum())


class Gram(Statistic):
    """Mean of x x^T over all tokens, [cols, cols], in fp32: SparseGPT's Hessian up to a factor that
    cancels.
    """

    def __init__(self, cols: int, device: torch.device) -> None:
        self.sum = torch.zeros(cols, cols, device=device)
        self.tokens = 0
        self._value: Tensor | None = None
        self._factor: InverseFactor | None = None

    def update(self, inputs: Tensor) -> None:
        """Add the outer products of inputs [tokens, cols], of which the upper half is enough: strips of rows
        from the diagonal on.
        """
        inputs = inputs.float()
        for start in range(0, inputs.shape[1], STRIP):
            self.sum[start : start + STRIP, start:].addmm_(
                inputs[:, start : start + STRIP].t(), inputs[:, start:]
            )
        self.tokens += len(inputs)
        self._value = self._factor = None

    @property
    def value(self) -> Tensor:
        """Mean over tokens, [cols, cols]; computed once for all layers that share the input."""
        if self._value is None:
            upper = self.sum.triu() / self.tokens
            self._value = upper + upper.triu(1).t()
        return self._value

    @classmethod
    def size_of(cls, cols: Sequence[int]) -> int:
        """Bytes for the layers of one block; the largest matrix is also held as a mean, factored and on the
        way there.
        """
        return 4 * (sum(count**2 for count in cols) + 3 * max(cols) ** 2)

    def factor(self, damping: float) -> InverseFactor:
        """The factored inverse, computed once for all layers that share the input."""
        if self._factor is None:
            self._factor = inverse_factor(self.value, damping)
        return self._factor

    def output_energy(self, weight: Tensor) -> float:
        """Mean of ||W x||^2, exactly."""
        weight = weight.float()
        return float(((weight @ self.value) * weight).sum())


class InputStatistics:
    """Statistics of the layers of one block, filled while the block runs under ``gathering``."""

    def __init__(self, kind: type[Statistic]) -> None:
        self.kind = kind
        self.of: dict[Layer, Statistic] = {}
        self._counted: tuple[Tensor, ...] = ()
        self._foreign: list[Tensor] = []
        self._leaders: set[Layer] = set()
        # In this run, of layers that have no statistic yet: what each call read, and the tensors, held alive
        # so that identity means the same input.
        self._reads: dict[Layer, list[Statistic]] = {}
        self._seen: list[tuple[Tensor, int, Statistic]] = []
        self._calls: list[Layer] = []
        self._repeats: bool | None = (
            None  # whether a run calls some layer twice; null before the first has ended
        )

    @contextmanager
    def gathering(self, layers: Sequence[Layer], stop: bool = False) -> Iterator[None]:
        """Watch the inputs of the layers while the block runs.

        Args:
            layers: of the block.
            stop: raise ``Enough`` in each run once every layer has been seen in it; what the last one would
                compute is not needed.
        """

        def watch(layer: Layer) -> Any:
            def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
                self._see(layer, arguments[0])
                self._calls.append(layer)
                # Not in the first run, which shows whether a layer is called again after the last one has
                # been.
                if stop and self._repeats is False and len(set(self._calls)) == len(layers):
                    raise Enough

            return hook

        handles = [layer.module.register_forward_pre_hook(watch(layer)) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._settle()

    def look_at(self, counted: tuple[Tensor, ...], foreign: list[Tensor]) -> None:
        """Say, before each run of the block, which tokens are real.

        Args:
            counted: [batch, tokens], for the sequence and for parts of it that some layers read alone; none
                where all are real.
            foreign: what comes from outside the tower, where this tower's padding means nothing.
        """
        self._settle()
        if self._calls:  # there was a run before this one
            self._repeats = bool(self._repeats) or len(set(self._calls)) < len(self._calls)
        self._calls = []
        self._counted, self._foreign = counted, foreign

    def _see(self, layer: Layer, inputs: Tensor) -> None:
        """Add the inputs once per statistic; which layers share one is known at the end of their first
        run.
        """
        if layer not in self.of:
            self._reads.setdefault(layer, []).append(self._of_tensor(inputs))
        elif layer in self._leaders:
            self.of[layer].update(self._real(inputs).detach())

    def _of_tensor(self, inputs: Tensor) -> Statistic:
        """The statistic of one tensor, computed once for all layers that read it before it is written to."""
        known = next(
            (
                own
                for tensor, version, own in self._seen
                if tensor is inputs and version == version_of(inputs)
            ),
            None,
        )
        if known is None:
            known = self.kind(inputs.shape[-1], inputs.device)
            known.update(self._real(inputs).detach())
            self._seen.append((inputs, version_of(inputs), known))
        return known

    def _settle(self) -> None:
        """Give one statistic to the layers that read the same tensors in each of their calls of a run."""
        leaders: dict[tuple[int, ...], Layer] = {}
        for layer, reads in self._reads.items():
            leader = leaders.setdefault(tuple(map(id, reads)), layer)
            if leader is layer:
                self._leaders.add(layer)
                self.of[layer] = reads[0] if len(reads) == 1 else self._total(reads)
            else:
                self.of[layer] = self.of[leader]
        self._reads.clear()
        self._seen.clear()

    def _total(self, reads: Sequence[Statistic]) -> Statistic:
        """The statistic of several calls."""
        total = self.kind(len(reads[0].sum), reads[0].sum.device)
        for read in reads:
            total.sum += read.sum
            total.tokens += read.tokens
        return total

    def _real(self, inputs: Tensor) -> Tensor:
        """The inputs of real tokens, [tokens, cols]."""
        tokens = inputs.reshape(-1, inputs.shape[-1])
        mask = next((mask for mask in self._counted if mask.numel() == len(tokens)), None)
        if mask is None or any(inputs is other for other in self._foreign):
            return tokens
        return tokens[mask.flatten()]

    def __getitem__(self, layer: Layer) -> Statistic:
        if layer not in self.of:
            raise UserError(
                f"{layer.name} never ran on the calibration data, so nothing is known of its inputs; leave it"
                " out with skip_layers"
            )
        return self.of[layer]
