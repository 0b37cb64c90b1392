"""Losses with one value per sample, so that many probes can share a forward pass."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ecoflap.errors import UserError, did_you_mean
from ecoflap.models.core.hooks import setting
from ecoflap.models.core.logits import collect
from ecoflap.models.core.prunable import Loss

IGNORED = -100
AT_ONCE = 2**22  # logits whose log-probabilities are in memory at a time; ops is not imported for it


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the target tokens of each sample.

    Args:
        logits: [batch, tokens, vocabulary].
        labels: [batch, tokens]; -100 marks tokens that are not targets.

    Returns:
        [batch], fp32.
    """
    if logits.requires_grad:
        return _TokenLoss.apply(logits, labels)  # type: ignore[no-any-return]
    collect(logits, labels != IGNORED)
    return _by_token(logits, labels).sum(dim=1) / (labels != IGNORED).sum(dim=1)


def _by_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies [batch, tokens], computed in parts to save memory.

    All log-probabilities together would be among the largest tensors of the whole run.
    """
    samples, tokens = (max(1, AT_ONCE // size) for size in (logits.shape[1:].numel(), logits.shape[-1]))
    rows = []
    for some, wanted in zip(logits.split(samples), labels.split(samples), strict=True):
        parts = zip(some.split(tokens, dim=1), wanted.split(tokens, dim=1), strict=True)
        losses = [
            cross_entropy(part.float().flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
            for part, target in parts
        ]
        rows.append(torch.cat(losses, dim=1))
    return torch.cat(rows)


class _TokenLoss(torch.autograd.Function):
    """``token_loss`` with a backward pass that holds only the logits and their gradient.

    Autograd would keep the log-probabilities as well, and build the gradient in several copies.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, labels: Tensor) -> Tensor:
        context.save_for_backward(logits, labels)
        return token_loss(logits.detach(), labels)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels = context.saved_tensors
        result, tokens = torch.empty_like(logits), max(1, AT_ONCE // logits.shape[-1])
        for row, target, scale, into in zip(logits, labels, gradients[0], result, strict=True):
            real = target != IGNORED
            factors = real * scale / real.sum()
            parts = (whole.split(tokens) for whole in (row, target, real, factors, into))
            for part, wanted, counts, factor, place in zip(*parts, strict=True):
                gradient = part.float().softmax(dim=-1)
                places = torch.arange(len(wanted), device=wanted.device)
                gradient[places, wanted.where(counts, 0)] -= counts.float()
                place.copy_(gradient.mul_(factor.unsqueeze(1)))
        return result, None


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``token_loss`` of a decoder-only model, whose logits at one position predict the next token."""
    if logits.requires_grad:  # a slice of the logits would cost a copy of their gradient
        no_target = labels.new_full((len(labels), 1), IGNORED)
        return token_loss(logits, torch.cat([labels[:, 1:], no_target], dim=1))
    return token_loss(logits[:, :-1], labels[:, 1:])


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the true class of each sample, [batch].

    Args:
        logits: [batch, classes].
        labels: [batch].
    """
    collect(logits)
    return cross_entropy(logits.float(), labels, reduction="none")


def contrastive_loss(
    first: Tensor, second: Tensor, scale: Tensor | float, positives: Tensor, copies: int = 1
) -> Tensor:
    """Symmetric in-batch cross-entropy between two views of the same samples (CLIP's loss), [batch].

    The target of a sample with several positives is uniform over them, as BLIP's is over the texts of an
    image.

    Args:
        first: normalised features, [batch, features].
        second: normalised features of the other view, [batch, features].
        scale: factor of the cosine similarity: the inverse of the temperature.
        positives: boolean, symmetric [samples, samples]; see ``find_positives``.
        copies: number of identical replicas in the batch; samples are compared within a replica only.
    """
    one, other = (features.float().unflatten(0, (copies, -1)) for features in (first, second))
    logits = scale * one @ other.transpose(1, 2)  # [copies, samples, samples]
    target = positives.float() / positives.sum(dim=1, keepdim=True)
    tables = (logits, logits.transpose(1, 2))
    for table in tables:
        collect(table)
    across, down = (-(table.log_softmax(dim=2) * target).sum(dim=2) for table in tables)
    return (across + down).flatten() / 2


def matching_loss(logits: Callable[[Tensor], Tensor], pictures: Tensor, negatives: Tensor) -> Tensor:
    """Binary classification of matching pairs: mean cross-entropy of a positive and a negative pair, [batch].

    BLIP draws the negative by similarity; a random draw would make the loss jump while weights are probed.

    Args:
        logits: logits [batch, 2] (no match, match) of each sample's text paired with a picture of these.
        pictures: states of each sample's picture, [batch, ...].
        negatives: index of each sample's negative, [batch]; its own where it has none, so that only the
            positive pair counts.
    """
    positive = class_loss(logits(pictures), torch.ones_like(negatives))
    has_none = negatives == torch.arange(len(negatives), device=negatives.device)
    if has_none.all():
        return positive
    negative = class_loss(logits(pictures[negatives]), torch.zeros_like(negatives))
    return torch.where(has_none, positive, (positive + negative) / 2)


def find_loss(name: str, known: Mapping[str, Loss], option: str = "model.loss") -> Loss:
    """The loss that an option names: one of the family's, or any function by its dotted path.

    Args:
        name: the option's value.
        known: the family's losses, by name.
        option: the option, for the message.

    Raises:
        UserError: if there is no such loss.
    """
    if name in known:
        return known[name]
    module, _, function = name.rpartition(".")
    choices = f"{did_you_mean(name, known)}; or " if known else ""
    own = "module.function of your own: (module, batch, copies) -> [batch]"
    if not module:
        raise UserError(f"{option}={name} is not known; {choices}give {own}")
    try:
        loss: Loss = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{option}={name} can't be loaded ({error}); {choices}give {own}") from error
    return loss


_counted: ContextVar[tuple[tuple[str | None, Tensor], ...]] = ContextVar("counted", default=())


def counting(*tokens: Tensor, **towers: Tensor) -> AbstractContextManager[object]:
    """Declare, around a forward pass over padded sequences, which tokens are real; statistics ignore padding.

    Args:
        tokens: masks [batch, tokens], nonzero where a token is real, for every tower that reads so many; one
            more for each part of the sequence that some layers read alone.
        towers: {kind of tower: such a mask for towers of this kind alone}. In a pass through several towers,
            one may read as many tokens of its own as another one's mask has.
    """
    masks = [*((None, mask) for mask in tokens), *towers.items()]
    return setting(_counted, tuple((kind, mask.bool()) for kind, mask in masks))


def counted_tokens(kind: str | None) -> tuple[Tensor, ...]:
    """What the innermost ``counting`` says of a tower.

    Args:
        kind: of the tower.

    Returns:
        Masks, [batch, tokens] each; empty where all tokens count.
    """
    return tuple(mask for wanted, mask in _counted.get() if wanted in (None, kind))
