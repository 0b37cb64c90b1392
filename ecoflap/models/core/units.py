"""The units of a BLIP that can be removed physically: dimensions of attention heads and hidden units of MLPs.

An attention loses a dimension in all of its heads, and in queries, keys and values alike: rows of the three
projections and columns of the output projection. An MLP loses a hidden unit: a row of its first layer and a
column of its second. A unit whose gate is zero contributes nothing, so removing it changes no output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax
from transformers.models.blip.modeling_blip import BlipAttention

from ecoflap.errors import UserError
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.prunable import PrunableModel


class NarrowAttention(BlipAttention):
    """BLIP's image attention for heads narrower than hidden size / heads.

    It replaces the class of an existing attention in place.
    """

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """[batch, tokens, features] -> the same, and the attention weights [batch, heads, tokens, tokens]."""
        qkv: Tensor = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [batch, heads, tokens, head_dim] each
        weights = self.dropout(softmax(query @ key.transpose(-1, -2) * self.scale, dim=-1))
        return self.projection((weights @ value).transpose(1, 2).flatten(2)), weights


@dataclass(frozen=True)
class Units:
    """The units of one attention or one MLP, which can be removed one by one.

    Attributes:
        name: path of the attention or MLP.
        kind: attention or mlp.
        count: number of units.
        writers: (linear, copies): the linear layer's rows are ``copies`` runs of the units.
        reader: (linear, copies): the linear layer's columns are ``copies`` runs of the units.
        resize: sets the new number of units in the module that holds them.
    """

    name: str
    kind: str
    count: int
    writers: tuple[tuple[nn.Linear, int], ...]
    reader: tuple[nn.Linear, int]
    resize: Callable[[int], None]

    @property
    def cost(self) -> int:
        """Number of weights that one unit takes; biases aren't counted."""
        linear, copies = self.reader
        return copies * linear.out_features + sum(
            times * writer.in_features for writer, times in self.writers
        )

    def gated(self, gate: Tensor) -> AbstractContextManager[None]:
        """Multiply every unit by its gate [units] in this context.

        The gates apply to queries, keys and values of an attention, and to the inputs of an MLP's second
        layer.
        """

        def scaled(values: Tensor) -> Tensor:
            return (values.unflatten(-1, (-1, self.count)) * gate).flatten(-2)

        def scale_output(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return scaled(output)

        def scale_input(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return scaled(inputs[0]), *inputs[1:]

        if self.kind == "attention":
            return hooks(linear.register_forward_hook(scale_output) for linear, _ in self.writers)
        return hooks([self.reader[0].register_forward_pre_hook(scale_input)])

    @torch.no_grad()
    def cut(self, keep: Tensor) -> None:
        """Remove all units but those at the indices ``keep`` [kept], at least one."""
        for linear, copies in self.writers:
            rows = self._indices(keep, copies)
            linear.weight = nn.Parameter(linear.weight[rows])
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[rows])
            linear.out_features = len(rows)
        linear, copies = self.reader
        linear.weight = nn.Parameter(linear.weight[:, self._indices(keep, copies)].contiguous())
        linear.in_features = linear.weight.shape[1]
        self.resize(len(keep))

    def _indices(self, keep: Tensor, copies: int) -> Tensor:
        """Rows or columns of units in ``copies`` runs, [copies x kept]."""
        return (torch.arange(copies, device=keep.device)[:, None] * self.count + keep).flatten()


def cut_all(module: nn.Module, units: Sequence[Units], keep: Sequence[Tensor]) -> None:
    """Remove units of each attention and MLP, and record the new numbers in the config for ``narrowed``.

    Args:
        module: the transformers model.
        units: its attentions and MLPs.
        keep: indices of the units to keep, [kept] each.
    """
    for one, indices in zip(units, keep, strict=True):
        one.cut(indices)
    settings: Any = module.config
    settings.kept_units = {one.name: len(indices) for one, indices in zip(units, keep, strict=True)}


def narrowed(model_class: Any, config: Any) -> Any:
    """The class of a checkpoint with attentions and MLPs as narrow as the config of a cut model says.

    Args:
        model_class: the transformers class of the dense model.
        config: the config of the cut model, with ``kept_units``.
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
    """The units of every block to prune.

    Raises:
        UserError: if a layer is not part of an attention or MLP of transformers' BLIP, or only a part of one
            is to be pruned.
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
        what = "towers or skip_layers leave out parts of one"
        if missing is not None:
            what = f"{missing.name} of {model.name} is none"
        raise UserError(
            f"a structured pruner cuts whole attentions and MLPs of transformers' BLIP, and {what}; choose"
            " another pruner, such as wanda"
        )
    return found


def _units_in(name: str, part: nn.Module) -> Iterator[Units]:
    """The units of every attention and MLP in a part of the model, whose path is ``name``."""
    for path, child in part.named_modules():
        inner: Any = child
        full, kind = ".".join(filter(None, (name, path))), type(child).__name__
        if isinstance(child, BlipAttention):
            yield _image_attention(full, child)
        elif kind == "BlipTextAttention":
            yield _text_attention(full, inner.self, inner.output.dense)
        elif kind == "BlipMLP":
            yield _mlp(full, inner.fc1, inner.fc2)
        elif kind == "BlipTextLayer":
            yield _mlp(f"{full}.intermediate", inner.intermediate.dense, inner.output.dense)


def _image_attention(name: str, attention: Any) -> Units:
    def resize(width: int) -> None:
        attention.__class__, attention.head_dim = NarrowAttention, width

    heads = attention.num_heads
    writers = ((attention.qkv, 3 * heads),)
    return Units(name, "attention", attention.head_dim, writers, (attention.projection, heads), resize)


def _text_attention(name: str, attention: Any, output: nn.Linear) -> Units:
    """An attention that divides by the root of its heads' width, for which the queries compensate."""

    def resize(width: int) -> None:
        factor = (width / attention.attention_head_size) ** 0.5
        attention.query.weight.mul_(factor)
        attention.query.bias.mul_(factor)
        attention.attention_head_size, attention.all_head_size = width, width * heads

    heads = attention.num_attention_heads
    writers = tuple((linear, heads) for linear in (attention.query, attention.key, attention.value))
    return Units(name, "attention", attention.attention_head_size, writers, (output, heads), resize)


def _mlp(name: str, first: nn.Linear, second: nn.Linear) -> Units:
    return Units(name, "mlp", first.out_features, ((first, 1),), (second, 1), lambda _: None)


def total_cost(units: Sequence[Units]) -> int:
    """Number of weights of all units together."""
    return sum(one.cost * one.count for one in units)
