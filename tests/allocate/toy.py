"""A language model of linear layers that published code for LLaMA can run, to compare results with it.

Weights and tokens are drawn by seed. Blocks differ in scale and in how heavy the tails of their weights are.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Selection
from ecoflap.models.loading.loader import prunable

BLOCKS, WIDTH, HIDDEN, VOCABULARY, SAMPLES, TOKENS = 4, 16, 48, 30, 3, 12


class Attention(nn.Module):
    """Four projections, and an elementwise product instead of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, features] -> the same."""
        gate = torch.tanh(self.q_proj(hidden))
        output: Tensor = self.o_proj(gate * self.k_proj(hidden) + self.v_proj(hidden))
        return output


class Block(nn.Module):
    """Attention and a hidden layer, each added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.up_proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down_proj = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, hidden: Tensor, attention_mask: Any = None, position_ids: Any = None) -> tuple[Tensor]:
        """[batch, tokens, features] -> the same."""
        hidden = hidden + self.self_attn(hidden)
        return (hidden + self.down_proj(torch.tanh(self.up_proj(hidden))),)


class Body(nn.Module):
    """Embedding and blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(BLOCKS))


class Toy(nn.Module):
    """The whole model."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.model = Body()
        self.config = SimpleNamespace(use_cache=False, hidden_size=WIDTH, to_dict=dict)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.model.embed_tokens.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
            for place, block in enumerate(self.model.layers):
                for parameter in block.parameters():
                    normal = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_((0.06 + 0.01 * place) * (normal + (0.1 + 0.2 * place) * normal**3))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of tokens [batch, tokens]."""
        hidden = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            hidden = layer(hidden, attention_mask=None, position_ids=None)[0]
        logits: Tensor = hidden @ self.model.embed_tokens.weight.t()
        return logits


def tokens(seed: int = 1) -> Tensor:
    """Token ids, [samples, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (SAMPLES, TOKENS), generator=generator)


def next_token_loss(module: nn.Module, batch: Batch, copies: int = 1) -> Tensor:
    """The mean cross-entropy of the next token per sample, [batch]."""
    logits, targets = module(batch["input_ids"])[:, :-1], batch["input_ids"][:, 1:]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses.mean(dim=1)


def toy() -> PrunableModel:
    """The toy as the pipeline sees it."""
    return prunable("toy", Toy(), None, next_token_loss, Selection(None, []), None, None)


def calibration() -> CalibrationSet:
    """The toy's calibration set."""
    return CalibrationSet("toy", tuple({"input_ids": row} for row in tokens()))
