"""What of a BLIP can be made physically smaller: the dimensions of its attention heads, and the hidden units
of its MLPs.

An attention loses a dimension in all of its heads, and in queries, keys and values alike: rows of the three
projections and columns of the output's. An MLP loses a hidden unit: a row of its first layer and a column of
its second. A unit whose gate is zero contributes nothing, so cutting it away changes no output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax
from transformers.models.blip.modeling_blip import BlipAttention

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel


class NarrowAttention(BlipAttention):
    """BLIP's image attention for heads narrower than the hidden states divided by them; put under an existing
    one in place.
    """

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """[batch, tokens, features] -> the same, and the attention weights [batch, heads, tokens, tokens]."""
        heads: Tensor = (
            self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        )
        query, key, value = heads  # [batch, heads, tokens, head_dim] each
        weights = self.dropout(softmax(query @ key.transpose(-1, -2) * self.scale, dim=-1))
        return self.projection((weights @ value).transpose(1, 2).flatten(2)), weights


@dataclass(frozen=True)
class Units:
    """Units of one attention or one MLP that can go one by one.

    Attributes:
        name: path of the attention or MLP.
        kind: attention or mlp.
        count: number of units.
        writers: (linear, copies): rows of a linear layer are ``copies`` runs of the units.
        reader: (linear, copies): so are the columns of this one.
        resize: tells the module that holds them their new number.
    """

    name: str
    kind: str
    count: int
    writers: tuple[tuple[nn.Linear, int], ...]
    reader: tuple[nn.Linear, int]
    resize: Callable[[int], None]

    @property
    def cost(self) -> int:
        """Weights that go with one unit; biases aren't counted."""
        linear, copies = self.reader
        return copies * linear.out_features + sum(
            times * writer.in_features for writer, times in self.writers
        )

    @contextmanager
    def gated(self, gate: Tensor) -> Iterator[None]:
        """Multiply every unit by its gate, [units]: queries, keys and values of an attention, and what an
        MLP's second layer reads.
        """

        def scaled(values: Tensor) -> Tensor:
            return (values.unflatten(-1, (-1, self.count)) * gate).flatten(-2)

        if self.kind == "attention":
            handles = [
                linear.register_forward_hook(lambda _, __, output: scaled(output))
                for linear, _ in self.writers
            ]
        else:
            handles = [
                self.reader[0].register_forward_pre_hook(lambda _, inputs: (scaled(inputs[0]), *inputs[1:]))
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def cut(self, keep: Tensor) -> None:
        """Keep the units [kept] of these indices, at least one."""
        for linear, copies in self.writers:
            rows = self._places(keep, copies)
            linear.weight = nn.Parameter(linear.weight[rows])
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[rows])
            linear.out_features = len(rows)
        linear, copies = self.reader
        linear.weight = nn.Parameter(linear.weight[:, self._places(keep, copies)].contiguous())
        linear.in_features = linear.weight.shape[1]
        self.resize(len(keep))

    def _places(self, keep: Tensor, copies: int) -> Tensor:
        """Rows or columns of units in ``copies`` runs, [copies x kept]."""
        return (torch.arange(copies, device=keep.device)[:, None] * self.count + keep).flatten()


def cut_all(module: nn.Module, units: Sequence[Units], keep: Sequence[Tensor]) -> None:
    """Keep some of the units of each attention and MLP, and write down in the module's config how many, for
    ``narrowed``.

    Args:
        module: the transformers model.
        units: of it.
        keep: indices of the units that stay, [kept] each.
    """
    for one, indices in zip(units, keep, strict=True):
        one.cut(indices)
    settings: Any = module.config
    settings.kept_units = {one.name: len(indices) for one, indices in zip(units, keep, strict=True)}


def narrowed(model_class: Any, config: Any) -> Any:
    """The class that a checkpoint belongs to, its attentions and MLPs as narrow as the config of a cut model
    says.
    """
    kept: dict[str, int] = config.kept_units

    class Narrow(model_class):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for one in list(_units_in("", self)):
                if one.name in kept:
                    one.cut(torch.arange(kept[one.name]))

    Narrow.__name__ = Narrow.__qualname__ = model_class.__name__
    return Narrow


def find_units(model: PrunableModel) -> list[Units]:
    """The units of every block that is pruned.

    Raises:
        UserError: a layer is no part of an attention or MLP of transformers' BLIP, or only a part of one is
            to be pruned.
    """
    found = [
        units
        for tower in model.towers
        for block in tower.blocks
        for units in _units_in(block.name, block.module)
    ]
    covered = {id(linear) for units in found for linear, _ in (*units.writers, units.reader)}
    missing = next((layer for layer in model.layers if id(layer.module) not in covered), None)
    chosen = {id(layer.module) for layer in model.layers}
    if missing is not None or not covered <= chosen:
        what = (
            f"{missing.name} of {model.name} is none"
            if missing is not None
            else "towers or skip_layers leave out parts of one"
        )
        raise UserError(
            f"a structured pruner cuts whole attentions and MLPs of transformers' BLIP, and {what}; choose"
            " another pruner, such as wanda"
        )
    return found


def _units_in(name: str, part: nn.Module) -> Iterator[Units]:
    for path, child in part.named_modules():
        inner: Any = child
        full = ".".join(filter(None, (name, path)))
        if isinstance(child, BlipAttention):
            heads = inner.num_heads
            yield Units(
                full,
                "attention",
                inner.head_dim,
                ((inner.qkv, 3 * heads),),
                (inner.projection, heads),
                _image_heads(inner),
            )
        elif type(child).__name__ == "BlipTextAttention":
            heads = inner.self.num_attention_heads
            writers = tuple(
                (linear, heads) for linear in (inner.self.query, inner.self.key, inner.self.value)
            )
            yield Units(
                full,
                "attention",
                inner.self.attention_head_size,
                writers,
                (inner.output.dense, heads),
                _text_heads(inner.self),
            )
        elif type(child).__name__ == "BlipMLP":
            yield Units(
                full, "mlp", inner.fc1.out_features, ((inner.fc1, 1),), (inner.fc2, 1), lambda _: None
            )
        elif type(child).__name__ == "BlipTextLayer":
            hidden = inner.intermediate.dense
            yield Units(
                f"{full}.intermediate",
                "mlp",
                hidden.out_features,
                ((hidden, 1),),
                (inner.output.dense, 1),
                lambda _: None,
            )


def _image_heads(attention: Any) -> Callable[[int], None]:
    def resize(width: int) -> None:
        attention.__class__, attention.head_dim = NarrowAttention, width

    return resize


def _text_heads(attention: Any) -> Callable[[int], None]:
    """The text attention divides by the root of its heads' width; the queries make up for the new one."""

    def resize(width: int) -> None:
        factor = (width / attention.attention_head_size) ** 0.5
        attention.query.weight.mul_(factor)
        attention.query.bias.mul_(factor)
        attention.attention_head_size, attention.all_head_size = width, width * attention.num_attention_heads

    return resize


def total_cost(units: Sequence[Units]) -> int:
    """Weights of all units."""
    return sum(one.cost * one.count for one in units)
