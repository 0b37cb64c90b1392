"""Statistics of the inputs of layers: the mean square of each column, and the Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from ecoflap.distributed.collectives import summed
from ecoflap.distributed.processes import size
from ecoflap.ops import InverseFactor, NormalisedInverse, inverse_factor, normalised_inverse

# Rows of a Gram matrix per product: enough for full speed, few enough to skip most of the lower half.
STRIP = 256
TOKENS = 2**15  # that are converted to fp32 at a time


Own = TypeVar("Own", bound="Statistic")


class Statistic(Protocol):
    """A statistic of inputs [tokens, cols] that is gathered batch by batch.

    A new one derives from this class and needs its own ``__init__``, ``update`` and ``output_energy``.

    Attributes:
        sum: what is summed over tokens, [cols, ...].
        tokens: how many there were.
        assumed: no token was seen, and others are assumed; see ``unseen``.
        storable: the sums are [cols], small enough to be kept for other runs.
    """

    sum: Tensor
    tokens: int
    assumed: bool = False
    storable: ClassVar[bool] = False

    def __init__(self, cols: int, device: torch.device) -> None:
        """Begin with no tokens."""

    def update(self, inputs: Tensor) -> None:
        """Add the inputs [tokens, cols] of one more batch."""

    def output_energy(self, weight: Tensor) -> float:
        """Mean over tokens of ||W x||^2 for a weight [rows, cols]: the unit of the relative error."""

    def add(self: Own, other: Own) -> None:
        """Add what another statistic of the same inputs holds."""
        self.sum = self.sum + other.sum
        self.tokens += other.tokens

    @classmethod
    def size_of(cls, cols: Sequence[int]) -> int:
        """Bytes for the layers of one block, each with so many input columns and an input of its own."""
        return 4 * sum(cols)

    def move(self, device: torch.device) -> None:
        """Move the sums to a device."""
        self.sum = self.sum.to(device)

    def combine(self) -> None:
        """Add up the sums that the processes of the run have gathered, each over its samples."""
        self.sum = summed(self.sum)
        self.tokens = int(summed(torch.tensor(self.tokens)))

    def kept(self) -> Tensor:
        """The sums and the number of tokens, negative if assumed, [cols + 1], fp64: nothing is rounded."""
        tokens = float(-self.tokens if self.assumed else self.tokens)
        return torch.cat([self.sum.cpu().double(), torch.tensor([tokens], dtype=torch.float64)])

    @classmethod
    def restored(cls: type[Own], kept: Tensor, device: torch.device) -> Own:
        """The statistic that ``kept`` returned, on a device, which need not support fp64."""
        statistic = cls(len(kept) - 1, device)
        statistic.sum, statistic.tokens = kept[:-1].float().to(device), abs(int(kept[-1]))
        statistic.assumed = bool(kept[-1] < 0)
        return statistic

    @classmethod
    def unseen(cls: type[Own], cols: int, device: torch.device) -> Own:
        """The statistic of an expert that no token reaches: each column was read once, alone.

        All columns then count alike and none goes with another, so a pruner decides by the weights alone.
        """
        statistic = cls(cols, device)
        statistic.update(torch.eye(cols, device=device))
        statistic.assumed = True
        return statistic


class MeanSquare(Statistic):
    """Mean square of each input column, [cols]: the diagonal of the Gram matrix, all that Wanda needs.

    The sum is held in two numbers, of about 48 bits together (Dekker 1971), so that neither the order of the
    batches nor their distribution over processes shows in the first of them.

    Attributes:
        sum: sum of squares per column, rounded to the nearest, [cols], fp32.
        rest: what rounding has taken from the sum, [cols], fp32.
        tokens: number of tokens in the sum.
    """

    storable: ClassVar[bool] = True

    def __init__(self, cols: int, device: torch.device) -> None:
        self.sum, self.rest = torch.zeros(2, cols, device=device)
        self.tokens = 0

    def update(self, inputs: Tensor) -> None:
        """Add the squares of inputs [tokens, cols]."""
        wide = torch.promote_types(inputs.dtype, torch.float32)
        self._add(torch.linalg.vector_norm(inputs, dim=0, dtype=wide).square(), len(inputs))

    def add(self, other: MeanSquare) -> None:
        """Add what another statistic holds."""
        self._add(other.sum, other.tokens)
        self._add(other.rest, 0)

    def _add(self, squares: Tensor, tokens: int) -> None:
        """Add sums of squares [cols] over some tokens."""
        squares = squares.to(self.sum.dtype)
        total = self.sum + squares
        added = total - self.sum
        rest = self.rest + ((self.sum - (total - added)) + (squares - added))
        self.sum = total + rest
        self.rest = rest - (self.sum - total)
        self.tokens += tokens

    def move(self, device: torch.device) -> None:
        """Move the sums to a device."""
        super().move(device)
        self.rest = self.rest.to(device)

    def combine(self) -> None:
        """Add up the sums of all processes, in fp64 on the CPU, as some accelerators have none."""
        if size() == 1:
            return
        device = self.sum.device
        exact = summed(self.sum.cpu().double() + self.rest.cpu().double())
        self.sum = exact.float().to(device)
        self.rest = (exact - exact.float().double()).float().to(device)
        self.tokens = int(summed(torch.tensor(self.tokens)))

    @property
    def value(self) -> Tensor:
        """Mean over tokens, [cols]."""
        return self.sum / self.tokens

    @property
    def mean_square(self) -> Tensor:
        """The value itself, under the name that it has in a Gram matrix."""
        return self.value

    def output_energy(self, weight: Tensor) -> float:
        """Mean of ||W x||^2 under the assumption that the columns of x are uncorrelated."""
        return float((weight.float().square() @ self.value).sum())


@cache
def exact_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which products of batches are summed: fp64, or fp32 on a device without it.

    Sums of a few numbers of 24 bits are exact in fp64 unless one of them is less than a 2^28th of another. So
    neither the order of the batches nor their distribution over processes shows.
    """
    try:
        return torch.zeros(1, dtype=torch.float64, device=device).dtype
    except (RuntimeError, TypeError):
        return torch.float32


class Gram(Statistic):
    """Mean of x x^T over all tokens, [cols, cols], in fp32: SparseGPT's Hessian up to a factor that cancels.

    Attributes:
        cols: number of columns.
        sum: upper half of the sum of x x^T, in strips of rows from the diagonal on, one after the other, in
            ``exact_dtype``.
        tokens: number of tokens in the sum.
    """

    def __init__(self, cols: int, device: torch.device) -> None:
        self.cols = cols
        self.sum = torch.zeros(self._numbers(cols), dtype=exact_dtype(device), device=device)
        self.tokens = 0
        self._forget()

    def update(self, inputs: Tensor) -> None:
        """Add the outer products of inputs [tokens, cols]; those of one call are summed in fp32."""
        for part in inputs.split(TOKENS):
            wide = part.float()
            for start, strip in self._strips():
                strip.add_(wide[:, start : start + STRIP].t() @ wide[:, start:])
        self.tokens += len(inputs)
        self._forget()

    def add(self, other: Gram) -> None:
        """Add what another statistic holds."""
        super().add(other)
        self._forget()

    def _strips(self) -> Iterator[tuple[int, Tensor]]:
        """The first row of each strip of the sum, and the strip, [rows, cols from the diagonal on]."""
        end = 0
        for start in range(0, self.cols, STRIP):
            rows, cols = min(STRIP, self.cols - start), self.cols - start
            begin, end = end, end + rows * cols
            yield start, self.sum[begin:end].view(rows, cols)

    @staticmethod
    def _numbers(cols: int) -> int:
        """How many numbers are in the strips."""
        return sum(min(STRIP, cols - start) * (cols - start) for start in range(0, cols, STRIP))

    def _forget(self) -> None:
        """Compute what follows from the sum again when it is needed."""
        self._value: Tensor | None = None
        self._factor: InverseFactor | None = None
        self._inverse: NormalisedInverse | None = None

    @property
    def value(self) -> Tensor:
        """Mean over tokens, [cols, cols]; computed once for all layers that share the input."""
        if self._value is None:
            upper = torch.zeros(self.cols, self.cols, device=self.sum.device)
            for start, strip in self._strips():
                upper[start : start + STRIP, start:] = strip / self.tokens
            self._value = upper.triu_() + upper.triu(1).t()
        return self._value

    @property
    def mean_square(self) -> Tensor:
        """Mean square of each input column, [cols]."""
        return self.value.diagonal()

    @classmethod
    def size_of(cls, cols: Sequence[int]) -> int:
        """Bytes for the layers of one block; mean, factor and workspace are of the largest matrix's size."""
        return 8 * sum(map(cls._numbers, cols)) + 4 * 3 * max(cols) ** 2

    def factor(self, damping: float) -> InverseFactor:
        """The factored inverse; computed once for all layers that share the input."""
        if self._factor is None:
            self._factor = inverse_factor(self.value, damping)
        return self._factor

    def normalised_inverse(self, damping: float, penalty: float) -> NormalisedInverse:
        """The inverse of ADMM; computed once for all layers that share the input and all of their solves."""
        known = self._inverse
        if known is None or (known.damping, known.penalty) != (damping, penalty):
            known = self._inverse = normalised_inverse(self.value, damping, penalty)
        return known

    def move(self, device: torch.device) -> None:
        """Move the sums and what was computed of them; the mean is computed again where it is needed."""
        self.sum = self.sum.to(device, exact_dtype(device))
        self._value = None
        if self._factor is not None:
            upper, dead, damping = self._factor
            self._factor = InverseFactor(upper.to(device), dead.to(device), damping)
        if self._inverse is not None:
            inverse, norms, damping, penalty = self._inverse
            self._inverse = NormalisedInverse(inverse.to(device), norms.to(device), damping, penalty)

    def combine(self) -> None:
        """Add up the sums of all processes; what was computed of this one's is computed again."""
        super().combine()
        self._forget()

    def output_energy(self, weight: Tensor) -> float:
        """Mean of ||W x||^2, exactly."""
        weight = weight.float()
        return float(((weight @ self.value) * weight).sum())
