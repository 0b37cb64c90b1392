"""What a pruner needs to know about the inputs of a layer, gathered while its block is dense.

Layers that read the same tensor (q, k and v; gate and up) share one statistic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ecoflap.errors import UserError
from ecoflap.models.layers import Layer
from ecoflap.ops import InverseFactor, inverse_factor

STRIP = 256  # rows of a Gram matrix per product: wide enough for full speed, narrow enough to leave most of the lower half out


class Enough(BaseException):
    """Ends the run of a block when the inputs of all its layers are known; no model code can mistake it for an error of its own."""


class Statistic(Protocol):
    """Gathered from inputs [tokens, cols], batch by batch."""

    def update(self, inputs: Tensor) -> None:
        """Take the inputs [tokens, cols] of one more batch."""

    def output_energy(self, weight: Tensor) -> float:
        """Mean over tokens of ||W x||^2 for a weight [rows, cols]; what the relative error is measured in."""


class MeanSquare:
    """Mean square of each input column, [cols]: the diagonal of the Gram matrix, all that Wanda needs."""

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

    def kept(self) -> Tensor:
        """The sums and the number of tokens, [cols + 1], fp64, on the CPU: nothing is rounded."""
        return torch.cat([self.sum.cpu().double(), torch.tensor([float(self.tokens)], dtype=torch.float64)])

    @classmethod
    def restored(cls, kept: Tensor, device: torch.device) -> MeanSquare:
        """The statistic that was kept, on a device, which need not have fp64."""
        statistic = cls(len(kept) - 1, device)
        statistic.sum, statistic.tokens = kept[:-1].float().to(device), int(kept[-1])
        return statistic

    def output_energy(self, weight: Tensor) -> float:
        """Mean of ||W x||^2 as if the columns of x were uncorrelated."""
        return float((weight.float().square() @ self.value).sum())


class Gram:
    """Mean of x x^T over all tokens, [cols, cols], in fp32: SparseGPT's Hessian up to a factor that cancels."""

    def __init__(self, cols: int, device: torch.device) -> None:
        self.sum = torch.zeros(cols, cols, device=device)
        self.tokens = 0
        self._value: Tensor | None = None
        self._factor: InverseFactor | None = None

    def update(self, inputs: Tensor) -> None:
        """Add the outer products of inputs [tokens, cols], of which the upper half is enough: strips of rows from the diagonal on."""
        inputs = inputs.float()
        for start in range(0, inputs.shape[1], STRIP):
            self.sum[start : start + STRIP, start:].addmm_(inputs[:, start : start + STRIP].t(), inputs[:, start:])
        self.tokens += len(inputs)
        self._value = self._factor = None

    @property
    def value(self) -> Tensor:
        """Mean over tokens, [cols, cols]; computed once for all layers that share the input."""
        if self._value is None:
            upper = self.sum.triu() / self.tokens
            self._value = upper + upper.triu(1).t()
        return self._value

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

    def __init__(self, kind: type[MeanSquare] | type[Gram]) -> None:
        self.kind = kind
        self.of: dict[Layer, MeanSquare | Gram] = {}
        self._counted: tuple[Tensor, ...] = ()
        self._foreign: list[Tensor] = []
        self._leaders: set[Layer] = set()
        self._calls: list[Layer] = []
        self._repeats: bool | None = None  # whether a run calls some layer twice; null before the first has ended

    @contextmanager
    def gathering(self, layers: Sequence[Layer], stop: bool = False) -> Iterator[None]:
        """Watch the inputs of the layers while the block runs.

        Args:
            layers: of the block.
            stop: raise ``Enough`` in each run once every layer has been seen in it; what the last one would compute is not needed.
        """
        seen: list[tuple[Tensor, Layer]] = []

        def watch(layer: Layer) -> Any:
            def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
                self._see(layer, arguments[0], seen)
                self._calls.append(layer)
                if len(self.of) == len(layers):
                    seen.clear()
                # Not in the first run, which shows whether a layer is called again after the last one has been.
                if stop and self._repeats is False and len(set(self._calls)) == len(layers):
                    raise Enough

            return hook

        handles = [layer.module.register_forward_pre_hook(watch(layer)) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def look_at(self, counted: tuple[Tensor, ...], foreign: list[Tensor]) -> None:
        """Say, before each run of the block, which tokens are real.

        Args:
            counted: [batch, tokens], for the sequence and for parts of it that some layers read alone; none where all are real.
            foreign: what comes from outside the tower, where this tower's padding means nothing.
        """
        if self._calls:  # there was a run before this one
            self._repeats = bool(self._repeats) or len(set(self._calls)) < len(self._calls)
        self._calls = []
        self._counted, self._foreign = counted, foreign

    def _see(self, layer: Layer, inputs: Tensor, seen: list[tuple[Tensor, Layer]]) -> None:
        """Assign the layer to a statistic on its first run, and add the inputs once per statistic.

        ``seen`` holds the tensors of the first run alive until each layer is known, so that identity means the same input and not a reused address.
        """
        if layer not in self.of:
            leader = next((other for tensor, other in seen if tensor is inputs), None)
            self.of[layer] = self.of[leader] if leader is not None else self.kind(layer.shape[1], inputs.device)
            seen.append((inputs, layer))
            if leader is None:
                self._leaders.add(layer)
        if layer in self._leaders:
            self.of[layer].update(self._real(inputs).detach())

    def _real(self, inputs: Tensor) -> Tensor:
        """The inputs of real tokens, [tokens, cols]."""
        tokens = inputs.reshape(-1, inputs.shape[-1])
        mask = next((mask for mask in self._counted if mask.numel() == len(tokens)), None)
        if mask is None or any(inputs is other for other in self._foreign):
            return tokens
        return tokens[mask.flatten()]

    def __getitem__(self, layer: Layer) -> MeanSquare | Gram:
        if layer not in self.of:
            raise UserError(f"{layer.name} never ran on the calibration data, so nothing is known of its inputs; leave it out with skip_layers")
        return self.of[layer]
