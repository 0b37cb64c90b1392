"""Statistics of the inputs of layers, and the mean square of each column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from ecoflap.distributed.collectives import summed
from ecoflap.distributed.processes import size

Own = TypeVar("Own", bound="Statistic")


class Statistic(Protocol):
    """A statistic of inputs [tokens, cols] that is gathered batch by batch.

    A new one derives from this class and needs its own ``__init__``, ``update`` and ``output_energy``.

    Attributes:
        sum: what is summed over tokens; [cols] if it is storable.
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
