"""Statistics of the inputs of layers, and the mean square of each column."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.blocks.containers import version_of
from ecoflap.distributed.collectives import summed
from ecoflap.errors import UserError

Own = TypeVar("Own", bound="Statistic")


@cache
def place_of_sums(device: torch.device) -> torch.device:
    """Where numbers of batches on a device are summed in fp64: there, or on the CPU if it has no fp64.

    Sums of a few numbers of 24 bits are exact in fp64 unless one of them is less than a 2^28th of another. So
    neither the order of the batches nor their distribution over processes shows.
    """
    try:
        return torch.zeros(1, dtype=torch.float64, device=device).device
    except (RuntimeError, TypeError):
        return torch.device("cpu")


class Statistic(Protocol):
    """A statistic of inputs [tokens, cols] that is gathered batch by batch.

    A new one derives from this class and needs its own ``__init__``, ``update`` and ``output_energy``.

    Attributes:
        device: the inputs' device.
        sum: what is summed over tokens, fp64, see ``place_of_sums``; [cols] if it is storable.
        tokens: how many there were.
        assumed: no token was seen, and others are assumed; see ``unseen``.
        storable: the sums are [cols], small enough to be kept for other runs.
        exact: ``output_energy`` is exact; else it takes the input columns as uncorrelated.
    """

    device: torch.device
    sum: Tensor
    tokens: int
    assumed: bool = False
    storable: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    def __init__(self, cols: int, device: torch.device) -> None:
        """Begin with no tokens."""

    @abstractmethod
    def update(self, inputs: Tensor) -> None:
        """Add the inputs [tokens, cols] of one more batch, and leave them as they are."""

    def take(self, inputs: Tensor, layer: str) -> None:
        """``update`` with the inputs [tokens, cols] of a layer, which have to stay as they are.

        Raises:
            UserError: if they don't: the model goes on with them.
        """
        version = version_of(inputs)
        self.update(inputs)
        if version_of(inputs) != version:
            raise UserError(
                f"{type(self).__name__}.update changed the inputs of {layer}, such as by square_(), and the"
                " model goes on with them; correct the statistic: compute on a copy, as square() does"
            )

    @abstractmethod
    def output_energy(self, weight: Tensor) -> float:
        """Mean over tokens of ||W x||^2 for a weight [rows, cols]: the unit of the relative error."""

    def forget(self) -> None:
        """Drop what was computed of the sums; where it is needed, it is computed again."""

    def add(self: Own, other: Own) -> None:
        """Add what another statistic of the same inputs holds."""
        self.sum = self.sum + other.sum
        self.tokens += other.tokens

    @classmethod
    def size_of(cls, cols: Sequence[int]) -> int:
        """Bytes for the layers of one block, each with so many input columns and an input of its own."""
        return 8 * sum(cols)

    @classmethod
    def size_of_solutions(cls, cols: Sequence[int]) -> int:
        """Bytes of what stays computed of the sums when layers are pruned again and again, as in trials."""
        return 0

    def move(self, device: torch.device) -> None:
        """Move the sums to where inputs on a device are summed."""
        self.device, self.sum = device, self.sum.to(place_of_sums(device))

    def combine(self) -> None:
        """Add up the sums that the processes of the run have gathered, each over its samples."""
        self.sum = summed(self.sum)
        self.tokens = int(summed(torch.tensor(self.tokens)))

    def kept(self) -> Tensor:
        """The sums and the number of tokens, negative if assumed, [cols + 1], fp64: nothing is rounded."""
        tokens = float(-self.tokens if self.assumed else self.tokens)
        return torch.cat([self.sum.cpu(), torch.tensor([tokens], dtype=torch.float64)])

    @classmethod
    def restored(cls: type[Own], kept: Tensor, device: torch.device) -> Own:
        """The statistic that ``kept`` returned, of inputs on a device."""
        statistic = cls(len(kept) - 1, device)
        statistic.sum, statistic.tokens = kept[:-1].to(statistic.sum.device), abs(int(kept[-1]))
        statistic.assumed = bool(kept[-1] < 0)
        return statistic

    @classmethod
    def unseen(cls: type[Own], cols: int, device: torch.device) -> Own:
        """The statistic of an expert that no token reaches: each column was read once, alone.

        All columns then count alike and none goes with another, so a pruner decides by the weights alone.
        """
        statistic = cls(cols, device)
        statistic.update(torch.eye(cols, dtype=torch.float32, device=device))
        statistic.assumed = True
        return statistic


class MeanSquare(Statistic):
    """Mean square of each input column, [cols], fp32: the Gram matrix's diagonal, all that Wanda needs."""

    storable: ClassVar[bool] = True

    def __init__(self, cols: int, device: torch.device) -> None:
        self.device, self.tokens = device, 0
        self.sum = torch.zeros(cols, dtype=torch.float64, device=place_of_sums(device))

    @override
    def update(self, inputs: Tensor) -> None:
        """Add the squares of inputs [tokens, cols]; those of one call are summed in fp32."""
        wide = torch.promote_types(inputs.dtype, torch.float32)
        squares = torch.linalg.vector_norm(inputs, dim=0, dtype=wide).square()
        self.sum = self.sum + squares.to(self.sum.device)
        self.tokens += len(inputs)

    @property
    def value(self) -> Tensor:
        """Mean over tokens, [cols]."""
        return self.sum.float().to(self.device) / self.tokens

    @property
    def mean_square(self) -> Tensor:
        """The value itself, under the name that it has in a Gram matrix."""
        return self.value

    @override
    def output_energy(self, weight: Tensor) -> float:
        """Mean of ||W x||^2 under the assumption that the columns of x are uncorrelated."""
        return float((weight.float().square() @ self.value).sum())
