"""Which layers of a block are added to a residual stream, and where that can be read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ecoflap.blocks.residual_streams import ResidualStreams
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.towers import Block


class Base(nn.Module):
    """Two layers and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6)


class PreNorm(Base):
    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.first(hidden)
        return hidden + self.second(self.norm(hidden))


class PostNorm(Base):
    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(self.first(hidden) + hidden)
        return self.second(hidden)


class Flat(Base):
    """The second layer reads all tokens in one row, as OPT's does."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        hidden = self.norm(hidden + self.first(hidden)).reshape(-1, 6)
        return (hidden + self.second(hidden)).reshape(2, 3, 6), None


class Scaled(Base):
    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + 0.5 * self.first(hidden)
        return hidden + torch.tanh(self.second(self.norm(hidden)))


class Parallel(Base):
    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        return hidden + self.first(normed) + self.second(normed)


class InPlace(Base):
    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden += self.first(hidden)
        return hidden.add_(self.second(self.norm(hidden)))


class NormTwice(Base):
    """The same norm reads two streams, so its input alone doesn't say which one is meant."""

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.first(self.norm(hidden))
        return hidden + self.second(self.norm(hidden))


class ReadAfterwards(Base):
    """The stream is not read by any module until the second layer has run, which it is added to."""

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.first(hidden)
        added = self.second(hidden.tanh())
        return hidden + added + 0 * self.norm(hidden)


class HeadNorm(Base):
    """A norm reads the heads of a layer's output, as Qwen3's does: as many numbers, fewer features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)

    def forward(self, hidden: Tensor) -> Tensor:
        heads = self.norm(self.first(hidden).unflatten(-1, (2, 3)))
        return hidden + 2 * self.second(heads.flatten(-2))


class Pooled(Base):
    """What is added is one token for all."""

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.first(hidden)
        return hidden + self.second(self.norm(hidden).mean(dim=1, keepdim=True))


class WiderStream(Base):
    """The stream is of more digits than the layers, as with Mamba's ``residual_in_fp32``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm.double()

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.double() + self.first(hidden)
        return wide + self.second(self.norm(wide).float())


class Nothing(Base):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.first(self.norm(hidden)) + self.second(hidden)


class NoGate(Base):
    """What the second layer puts out scales the stream, by one at present."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        scaled = hidden * (1 + self.second(self.norm(hidden)))
        return scaled + self.first(scaled)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (PreNorm, {"first": "", "second": "norm"}),
        (PostNorm, {"first": ""}),
        (Flat, {"first": "", "second": "second"}),
        (Scaled, {}),
        (Parallel, {}),
        (InPlace, {}),
        (NormTwice, {"first": ""}),
        (ReadAfterwards, {"first": ""}),
        (HeadNorm, {}),
        (Pooled, {"first": ""}),
        (WiderStream, {}),
        (Nothing, {"first": ""}),
        (NoGate, {"first": ""}),
    ],
)
@torch.no_grad()
def test_streams_are_found_or_not(build: Callable[[], Base], expected: dict[str, str]) -> None:
    torch.manual_seed(0)
    module = build()
    names = {one: name for name, one in module.named_modules()}
    layers = tuple(Layer(f"{name}.weight", getattr(module, name)) for name in ("first", "second"))
    streams = ResidualStreams(Block("block", module, layers))
    with streams.recording():
        module(torch.randn(2, 3, 6))
    assert {names[layer.module]: names[one] for layer, one in streams.read_by.items()} == expected
