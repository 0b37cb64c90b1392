"""The Gram matrix of the inputs of layers, and what SparseGPT and ADMM compute of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.statistics import Statistic, place_of_sums
from ecoflap.ops import InverseFactor, NormalisedInverse, inverse_factor, normalised_inverse

# Rows of a Gram matrix per product: enough for full speed, few enough to skip most of the lower half.
STRIP = 256
TOKENS_AT_ONCE = 2**15  # that are converted to fp32 at a time


class Gram(Statistic):
    """Mean of x x^T over all tokens, [cols, cols], in fp32: SparseGPT's Hessian up to a factor that cancels.

    Attributes:
        cols: number of columns.
        device: the inputs' device.
        sum: upper half of the sum of x x^T, in strips of rows from the diagonal on, one after the other,
            fp64; see ``place_of_sums``.
        tokens: number of tokens in the sum.
    """

    exact: ClassVar[bool] = True

    def __init__(self, cols: int, device: torch.device) -> None:
        self.cols, self.device = cols, device
        self.sum = torch.zeros(self._numbers(cols), dtype=torch.float64, device=place_of_sums(device))
        self.tokens = 0
        self.forget()

    @override
    def update(self, inputs: Tensor) -> None:
        """Add the outer products of inputs [tokens, cols]; those of one call are summed in fp32."""
        for part in inputs.split(TOKENS_AT_ONCE):
            wide = part.float()
            for start, strip in self._strips():
                product = wide[:, start : start + STRIP].t() @ wide[:, start:]
                strip.add_(product.to(strip.device))
        self.tokens += len(inputs)
        self.forget()

    @override
    def add(self, other: Gram) -> None:
        super().add(other)
        self.forget()

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

    @override
    def forget(self) -> None:
        self._value: Tensor | None = None
        self._factor: tuple[float, InverseFactor] | None = None  # with the damping that was asked for
        self._inverse: NormalisedInverse | None = None

    @property
    def value(self) -> Tensor:
        """Mean over tokens, [cols, cols]; computed once for all layers that share the input."""
        if self._value is None:
            upper = torch.zeros(self.cols, self.cols, dtype=torch.float32, device=self.device)
            for start, strip in self._strips():
                upper[start : start + STRIP, start:] = (strip / self.tokens).float().to(self.device)
            self._value = upper.triu_() + upper.triu(1).t()
        return self._value

    @property
    def mean_square(self) -> Tensor:
        """Mean square of each input column, [cols]: the diagonal of the value, without the value."""
        diagonal = torch.cat([strip.diagonal() for _, strip in self._strips()])
        return (diagonal / self.tokens).float().to(self.device)

    @classmethod
    @override
    def size_of(cls, cols: Sequence[int]) -> int:
        """The mean, the factor and the workspace are of the largest matrix's size."""
        return 8 * sum(map(cls._numbers, cols)) + 4 * 3 * max(cols) ** 2

    @classmethod
    @override
    def size_of_solutions(cls, cols: Sequence[int]) -> int:
        """A factor or an inverse of each matrix."""
        return 4 * sum(size**2 for size in cols)

    def factor(self, damping: float) -> InverseFactor:
        """The factored inverse; computed once for all layers that share the input."""
        if self._factor is None or self._factor[0] != damping:
            self._factor = damping, inverse_factor(self.value, damping)
        return self._factor[1]

    def normalised_inverse(self, damping: float, penalty: float) -> NormalisedInverse:
        """The inverse of ADMM; computed once for all layers that share the input and all of their solves."""
        known = self._inverse
        if known is None or (known.damping, known.penalty) != (damping, penalty):
            known = self._inverse = normalised_inverse(self.value, damping, penalty)
        return known

    @override
    def move(self, device: torch.device) -> None:
        """Move the sums and what was computed of them; the mean is computed again where it is needed."""
        super().move(device)
        self._value = None
        if self._factor is not None:
            asked, (upper, dead, damping) = self._factor
            self._factor = asked, InverseFactor(upper.to(device), dead.to(device), damping)
        if self._inverse is not None:
            inverse, norms, damping, penalty = self._inverse
            self._inverse = NormalisedInverse(inverse.to(device), norms.to(device), damping, penalty)

    @override
    def combine(self) -> None:
        """Add up the sums of all processes; what was computed of this one's is computed again."""
        super().combine()
        self.forget()

    @override
    def output_energy(self, weight: Tensor) -> float:
        """Mean of ||W x||^2, exactly."""
        weight = weight.float()
        return float(((weight @ self.value) * weight).sum())
