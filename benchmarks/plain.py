"""The published algorithms in their plain form: what each benchmark row is measured against.

They do what the papers' code does (one layer or column at a time, one sequence at a time, a full sort, a
statistic per layer) and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.data.batch import Batch
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import gaussian

Noise = Callable[[Layer, int], Tensor]


def sorted_rows(metric: Tensor, prune_per_row: int) -> Tensor:
    """Wanda's mask, True where kept: a stable sort of every row, then a scatter."""
    order = metric.sort(dim=1, stable=True).indices
    mask = torch.ones_like(metric, dtype=torch.bool)
    return mask.scatter_(1, order[:, :prune_per_row], False)


def n_of_m_by_columns(metric: Tensor, n: int, m: int) -> Tensor:
    """Wanda's n:m mask, True where kept: one top-k and one scatter per group of columns."""
    mask = torch.ones_like(metric, dtype=torch.bool)
    for start in range(0, metric.shape[1], m):
        lowest = metric[:, start : start + m].topk(m - n, dim=1, largest=False).indices
        mask.scatter_(1, start + lowest, False)
    return mask


def sparsegpt_by_columns(
    weight: Tensor, hessian: Tensor, keep: int, damping: float = 0.01, block: int = 128
) -> tuple[Tensor, Tensor]:
    """SparseGPT as published; returns (weight, mask)."""
    weight, hessian = weight.float().clone(), hessian.clone()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    return column_loop(weight, inverse_factor(hessian), keep, block)


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper factor of the inverse: Cholesky, inverse, Cholesky."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)


def column_loop(weight: Tensor, upper: Tensor, keep: int, block: int = 128) -> tuple[Tensor, Tensor]:
    """One column after the other, given the factor; returns (weight, mask).

    The counts per block are those of ``ecoflap.ops``, so that the two masks can be compared.
    """
    weight = weight.clone()
    rows, cols = weight.shape
    kept, losses = torch.zeros_like(weight, dtype=torch.bool), weight.new_zeros(rows)
    for start in range(0, cols, block):
        stop = min(start + block, cols)
        part, inner = weight[:, start:stop].clone(), upper[start:stop, start:stop]
        errors, done, loss = torch.zeros_like(part), torch.zeros_like(part), torch.zeros_like(part)
        saliency = part.square() / inner.diagonal().reshape(1, -1).square()
        remove = rows * (stop - start) - (keep * stop // cols - keep * start // cols)
        pruned = (
            saliency <= saliency.flatten().sort().values[remove - 1]
            if remove
            else torch.zeros_like(part, dtype=torch.bool)
        )
        for column in range(stop - start):
            current, diagonal = part[:, column], inner[column, column]
            new = current.clone()
            new[pruned[:, column]] = 0
            done[:, column] = new
            loss[:, column] = (current - new).square() / diagonal.square()
            error = (current - new) / diagonal
            part[:, column:] -= error.unsqueeze(1).matmul(inner[column, column:].unsqueeze(0))
            errors[:, column] = error
        weight[:, start:stop], kept[:, start:stop] = done, ~pruned
        losses += loss.sum(dim=1) / 2
        weight[:, stop:] -= errors.matmul(upper[start:stop, stop:])
    return weight, kept


@torch.no_grad()
def zeroth_order(
    model: PrunableModel,
    batches: Sequence[Batch],
    layers: Sequence[Layer],
    noise: Noise,
    draws: int,
    eps: float,
) -> dict[str, float]:
    """Each layer by itself: its weights are really moved by +eps z, -2 eps z and back, with a full forward
    pass at both places, batch by batch.
    """
    sums, samples = (
        dict.fromkeys((layer.name for layer in layers), 0.0),
        sum(len(next(iter(batch.values()))) for batch in batches),
    )
    for layer in layers:
        for index, batch in enumerate(batches):
            for draw in range(draws):
                nudge = eps * noise(layer, index * draws + draw)
                layer.weight.add_(nudge)
                plus = model.loss(batch).double().mean()
                layer.weight.sub_(2 * nudge)
                minus = model.loss(batch).double().mean()
                layer.weight.add_(nudge)
                sums[layer.name] += (
                    len(next(iter(batch.values()))) * abs(float(plus - minus)) / (2 * eps) / draws
                )
    return {name: total / samples for name, total in sums.items()}


def same_noise(seed: int, draws: int) -> Noise:
    """The draws of ``ecoflap.score.zeroth_order``, so that both sides estimate with the same random
    numbers.
    """

    def noise(layer: Layer, number: int) -> Tensor:
        drawn = gaussian(layer.shape, "zeroth_order", seed, number // draws, layer.name, number % draws)
        return layer.oriented(drawn.to(layer.weight.device))

    return noise


class _ColumnNorm:
    """Wanda's running statistic of one layer, rescaled at each sequence."""

    def __init__(self, cols: int, device: torch.device) -> None:
        self.value, self.sequences = torch.zeros(cols, device=device), 0

    def add(self, inputs: Tensor) -> None:
        columns = inputs.reshape(-1, inputs.shape[-1]).t().type(torch.float32)
        self.value *= self.sequences / (self.sequences + 1)
        self.sequences += 1
        self.value += torch.norm(columns, p=2, dim=1) ** 2 / self.sequences


class _Hessian:
    """SparseGPT's running Hessian of one layer, rescaled at each sequence."""

    def __init__(self, cols: int, device: torch.device) -> None:
        self.value, self.sequences = torch.zeros(cols, cols, device=device), 0

    def add(self, inputs: Tensor) -> None:
        columns = inputs.reshape(-1, inputs.shape[-1]).t()
        self.value *= self.sequences / (self.sequences + 1)
        self.sequences += 1
        columns = (2 / self.sequences) ** 0.5 * columns.float()
        self.value += columns.matmul(columns.t())


class _Caught(BaseException):
    """The first block's inputs are known."""


def _inputs_of_first_block(
    model: PrunableModel, sequences: Sequence[Batch]
) -> tuple[list[Tensor], dict[str, Any]]:
    caught: list[tuple[Tensor, dict[str, Any]]] = []

    def catch(_: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        caught.append((arguments[0], keywords))
        raise _Caught

    handle = model.towers[0].blocks[0].module.register_forward_pre_hook(catch, with_kwargs=True)
    for sequence in sequences:
        with suppress(_Caught):
            model.loss(sequence)
    handle.remove()
    return [hidden for hidden, _ in caught], caught[-1][1]


@torch.no_grad()
def prune_by_sequences(
    model: PrunableModel, sequences: Sequence[Batch], pruner: str, sparsity: float
) -> None:
    """Prune a language model in place as the published loops do: one sequence at a time, each block twice,
    one statistic per layer.
    """
    statistic = _ColumnNorm if pruner == "wanda" else _Hessian
    hidden, keywords = _inputs_of_first_block(model, sequences)
    for block in model.towers[0].blocks:
        statistics = {layer: statistic(layer.shape[1], model.device) for layer in block.layers}
        handles = [
            layer.module.register_forward_hook(
                lambda _, arguments, __, layer=layer, statistics=statistics: statistics[layer].add(
                    arguments[0]
                )
            )
            for layer in block.layers
        ]
        for state in hidden:
            block.module(state, **keywords)
        for handle in handles:
            handle.remove()
        for layer in block.layers:
            weight, remove = layer.matrix(), int(layer.shape[1] * sparsity)
            if pruner == "wanda":
                metric = weight.abs() * statistics[layer].value.reshape(1, -1).sqrt()
                layer.write(weight * sorted_rows(metric, remove))
            else:
                solved, _ = sparsegpt_by_columns(
                    weight, statistics[layer].value, layer.size - int(layer.size * sparsity)
                )
                layer.write(solved)
        hidden = [
            output if isinstance(output := block.module(state, **keywords), Tensor) else output[0]
            for state in hidden
        ]
