"""Statistics of the inputs of layers, gathered while their block is dense.

Layers that read the same tensor (q, k and v; gate and up) share one statistic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ecoflap.blocks.containers import version_of
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.ops import InverseFactor, NormalisedInverse, inverse_factor, normalised_inverse

# Rows of a Gram matrix per product: enough for full speed, few enough to skip most of the lower half.
STRIP = 256
ROUTED = re.compile(r"experts\.\d+\.")  # names of layers that read the tokens that a router sends them
TOKENS = 2**15  # that are converted to fp32 at a time


class InputsComplete(BaseException):
    """Ends the run of a block once the inputs of all its layers are known.

    It derives from BaseException so that no model code catches it.
    """


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

    @classmethod
    def size_of(cls, cols: Sequence[int]) -> int:
        """Bytes for the layers of one block, each with so many input columns and an input of its own."""
        return 4 * sum(cols)

    def move(self, device: torch.device) -> None:
        """Move the sums to a device."""
        self.sum = self.sum.to(device)

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

    Attributes:
        sum: sum of squares per column, [cols], fp32.
        tokens: number of tokens in the sum.
    """

    storable: ClassVar[bool] = True

    def __init__(self, cols: int, device: torch.device) -> None:
        self.sum = torch.zeros(cols, device=device)
        self.tokens = 0

    def update(self, inputs: Tensor) -> None:
        """Add the squares of inputs [tokens, cols]."""
        wide = torch.promote_types(inputs.dtype, torch.float32)
        self.sum += torch.linalg.vector_norm(inputs, dim=0, dtype=wide).square()
        self.tokens += len(inputs)

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


class Gram(Statistic):
    """Mean of x x^T over all tokens, [cols, cols], in fp32: SparseGPT's Hessian up to a factor that cancels.

    Attributes:
        sum: sum of x x^T, [cols, cols], fp32; only its upper half is complete.
        tokens: number of tokens in the sum.
    """

    def __init__(self, cols: int, device: torch.device) -> None:
        self.sum = torch.zeros(cols, cols, device=device)
        self.tokens = 0
        self._value: Tensor | None = None
        self._factor: InverseFactor | None = None
        self._inverse: NormalisedInverse | None = None

    def update(self, inputs: Tensor) -> None:
        """Add the outer products of inputs [tokens, cols].

        Only the upper half is computed, in strips of rows from the diagonal on.
        """
        for part in inputs.split(TOKENS):
            wide = part.float()
            for start in range(0, inputs.shape[1], STRIP):
                self.sum[start : start + STRIP, start:].addmm_(
                    wide[:, start : start + STRIP].t(), wide[:, start:]
                )
        self.tokens += len(inputs)
        self._value = self._factor = self._inverse = None

    @property
    def value(self) -> Tensor:
        """Mean over tokens, [cols, cols]; computed once for all layers that share the input."""
        if self._value is None:
            upper = self.sum.triu() / self.tokens
            self._value = upper + upper.triu(1).t()
        return self._value

    @property
    def mean_square(self) -> Tensor:
        """Mean square of each input column, [cols]."""
        return self.value.diagonal()

    @classmethod
    def size_of(cls, cols: Sequence[int]) -> int:
        """Bytes for the layers of one block; mean, factor and workspace are of the largest matrix's size."""
        return 4 * (sum(count**2 for count in cols) + 3 * max(cols) ** 2)

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
        super().move(device)
        self._value = None
        if self._factor is not None:
            upper, dead, damping = self._factor
            self._factor = InverseFactor(upper.to(device), dead.to(device), damping)
        if self._inverse is not None:
            inverse, norms, damping, penalty = self._inverse
            self._inverse = NormalisedInverse(inverse.to(device), norms.to(device), damping, penalty)

    def output_energy(self, weight: Tensor) -> float:
        """Mean of ||W x||^2, exactly."""
        weight = weight.float()
        return float(((weight @ self.value) * weight).sum())


class InputStatistics:
    """Statistics of the layers of one block, filled while the block runs under ``gathering``.

    Attributes:
        kind: the statistic to gather.
        of: the statistic of each layer; layers that read the same input share one.
    """

    def __init__(self, kind: type[Statistic]) -> None:
        self.kind = kind
        self.of: dict[Layer, Statistic] = {}
        self._counted: tuple[Tensor, ...] = ()
        self._foreign: list[Tensor] = []
        self._leaders: set[Layer] = set()
        self._unseen: dict[Layer, Statistic] = {}
        # Layers without a statistic, in this run: what each call read, and the tensors, which stay alive so
        # that equal identity means the same input.
        self._reads: dict[Layer, list[Statistic]] = {}
        self._seen: list[tuple[Tensor, int, Statistic]] = []
        self._calls: list[Layer] = []
        self._repeats: bool | None = None  # whether a run calls some layer twice; None until one has ended

    @contextmanager
    def gathering(self, layers: Sequence[Layer], stop: bool = False) -> Iterator[None]:
        """Gather the inputs of layers while the block runs in this context.

        Args:
            layers: layers of the block.
            stop: raise ``InputsComplete`` in each run once the inputs of every layer are known, to save the
                rest of the block's computation.
        """

        def watch(layer: Layer) -> Any:
            def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
                self._observe(layer, arguments[0])
                self._calls.append(layer)
                # Not in the first run, which shows whether layers are called again after the last one was.
                if stop and self._repeats is False and len(set(self._calls)) == len(layers):
                    raise InputsComplete

            return hook

        handles = [layer.module.register_forward_pre_hook(watch(layer)) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._settle()

    def begin_run(self, counted: tuple[Tensor, ...], foreign: list[Tensor]) -> None:
        """Set the tokens that count in the next run of the block; called before each run.

        Args:
            counted: masks [batch, tokens] of the sequence and of parts that some layers read alone; empty
                where all tokens count.
            foreign: tensors from outside the tower, to which this tower's masks don't apply.
        """
        self._settle()
        if self._calls:  # not the first run
            self._repeats = bool(self._repeats) or len(set(self._calls)) < len(self._calls)
        self._calls = []
        self._counted, self._foreign = counted, foreign

    def _observe(self, layer: Layer, inputs: Tensor) -> None:
        """Add the inputs once per statistic; which layers share one is known after their first run."""
        if layer not in self.of:
            self._reads.setdefault(layer, []).append(self._of_tensor(layer, inputs))
        elif layer in self._leaders:
            self.of[layer].update(self._counted_of(layer, inputs))

    def _of_tensor(self, layer: Layer, inputs: Tensor) -> Statistic:
        """The statistic of one tensor; computed once for all layers that read it before it is written to."""
        current = version_of(inputs)
        for tensor, version, statistic in self._seen:
            if tensor is inputs and version == current:
                return statistic
        statistic = self.kind(inputs.shape[-1], inputs.device)
        statistic.update(self._counted_of(layer, inputs))
        self._seen.append((inputs, current, statistic))
        return statistic

    def _settle(self) -> None:
        """Share one statistic among the layers that read the same tensors in each of their calls of a run."""
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
        """The sum of the statistics of several calls."""
        total = self.kind(len(reads[0].sum), reads[0].sum.device)
        for read in reads:
            total.sum += read.sum
            total.tokens += read.tokens
        return total

    def _counted_of(self, layer: Layer, inputs: Tensor) -> Tensor:
        """The inputs of the tokens that count, [tokens, cols]."""
        return counted_inputs(layer, inputs, self._counted, self._foreign)

    def __getitem__(self, layer: Layer) -> Statistic:
        if layer.is_expert and (layer not in self.of or not self.of[layer].tokens):
            if layer not in self._unseen:
                self._unseen[layer] = self.kind.unseen(layer.shape[1], layer.weight.device)
            return self._unseen[layer]
        if layer not in self.of:
            raise never_ran(layer)
        return require_tokens(layer, self.of[layer])


def counted_inputs(
    layer: Layer, inputs: Tensor, counted: Sequence[Tensor], foreign: Sequence[Tensor]
) -> Tensor:
    """The inputs of the tokens that count, [tokens, cols].

    All that a layer reads counts where the masks say nothing of it: tokens that a router has selected unknown
    to the layer, the sequence of another tower, tokens that were merged.

    Args:
        layer: reads the inputs, in a call that is under way.
        inputs: [..., cols].
        counted: masks of the tokens that count; see ``InputStatistics.begin_run``.
        foreign: tensors that the masks don't apply to.
    """
    tokens, routed = inputs.detach().reshape(-1, inputs.shape[-1]), layer.routed
    if routed is not None:
        of_experts = next((mask for mask in counted if mask.numel() == routed.tokens), None)
        return tokens if of_experts is None else tokens[of_experts.flatten()[routed.positions]]
    rows = tuple(inputs.shape[:-1])
    alike = (mask for mask in counted if rows in (mask.shape, (mask.numel(),), (1, mask.numel())))
    mask = next(alike, None)
    unknown = layer.is_expert or ROUTED.search(layer.name) is not None
    if mask is None or unknown or any(inputs is other for other in foreign):
        return tokens
    return tokens[mask.flatten()]


def require_tokens(layer: Layer, statistic: Statistic) -> Statistic:
    """A statistic that holds tokens.

    Raises:
        UserError: if none of the tokens that the layer reads counts.
    """
    if not statistic.tokens:
        raise UserError(
            f"{layer.name} reads none of the tokens that count, so nothing is known of its inputs; leave it"
            " out with skip_layers, or use tokens=all"
        )
    return statistic


def never_ran(layer: Layer) -> UserError:
    """The error of a layer that no batch reached."""
    return UserError(
        f"{layer.name} never ran on the calibration data, so nothing is known of its inputs; leave it out"
        " with skip_layers"
    )
