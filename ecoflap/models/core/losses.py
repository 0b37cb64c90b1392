"""Losses, one value per sample, so that many probes can share a forward pass."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ecoflap.errors import UserError, did_you_mean
from ecoflap.models.core.prunable import Loss

IGNORED = -100
AT_ONCE = 2**22  # logits


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the target tokens of each sample.

    Args:
        logits: [batch, tokens, vocabulary].
        labels: [batch, tokens]; -100 marks tokens that are no target.

    Returns:
        [batch], fp32.
    """
    if logits.requires_grad:
        return _TokenLoss.apply(logits, labels)  # type: ignore[no-any-return]
    return _by_token(logits, labels).sum(dim=1) / (labels != IGNORED).sum(dim=1)


def _by_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies [batch, tokens], a part after the other: all log-probabilities would be among the
    largest tensors of the whole run.
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
    """``token_loss`` whose backward pass holds the logits and their gradient, and nothing else of that size.

    Autograd would keep the log-probabilities beside them, and build the gradient in several copies.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, labels: Tensor) -> Tensor:
        context.save_for_backward(logits, labels)
        return token_loss(logits.detach(), labels)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels = context.saved_tensors
        result = torch.empty_like(logits)
        for row, target, scale, into in zip(logits, labels, gradients[0], result, strict=True):
            real = target != IGNORED
            part = row.float().softmax(dim=-1)
            part[torch.arange(len(target), device=target.device), target.where(real, 0)] -= real.float()
            into.copy_(part.mul_((real * scale / real.sum()).unsqueeze(1)))
        return result, None


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``token_loss`` of a decoder-only model, whose logits at one position predict the next token."""
    if logits.requires_grad:  # a slice of the logits would cost a copy of their gradient
        return token_loss(
            logits, torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], dim=1)
        )
    return token_loss(logits[:, :-1], labels[:, 1:])


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the right class of each sample, [batch].

    Args:
        logits: [batch, classes].
        labels: [batch].
    """
    return cross_entropy(logits.float(), labels, reduction="none")


def contrastive_loss(
    first: Tensor, second: Tensor, scale: Tensor | float, right: Tensor, copies: int = 1
) -> Tensor:
    """Symmetric in-batch cross-entropy between two views of the same samples (CLIP's loss), [batch].

    A sample with several right partners is to find all of them: its target is uniform over them, as BLIP's is
    over the texts of a picture.

    Args:
        first: normalised features, [batch, features].
        second: normalised features of the other view, [batch, features].
        scale: what the cosine is multiplied with: one over the temperature.
        right: which samples are right partners of which (symmetric; each of itself), bool, [samples,
            samples]; see ``find_positives``.
        copies: replicas that the batch is made of; samples are compared inside a replica only.
    """
    one, other = (features.float().unflatten(0, (copies, -1)) for features in (first, second))
    logits = scale * one @ other.transpose(1, 2)  # [copies, samples, samples]
    target = right / right.sum(dim=1, keepdim=True)
    across, down = (
        -(table.log_softmax(dim=2) * target).sum(dim=2) for table in (logits, logits.transpose(1, 2))
    )
    return (across + down).flatten() / 2


def matching_loss(own: Tensor, wrong: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """Do the two views belong together? Mean of the cross-entropies of each sample with its own partner and
    with a wrong one, [batch].

    Args:
        own: logits of each sample with its own partner, [batch, 2]: apart, together.
        wrong: position of each sample's wrong partner; its own where it has none and only the first term
            counts, [batch].
        logits: such logits of each sample with the partners at given positions, [batch] -> [batch, 2].
    """
    loss = class_loss(own, torch.ones_like(wrong))
    alone = wrong == torch.arange(len(wrong), device=wrong.device)
    if alone.all():
        return loss
    return torch.where(alone, loss, (loss + class_loss(logits(wrong), torch.zeros_like(wrong))) / 2)


def find_loss(name: str, known: Mapping[str, Loss], option: str = "model.loss") -> Loss:
    """The loss of an option: one of the family's own, or any function by its dotted path.

    Args:
        name: the option's value.
        known: the family's own, by name.
        option: for the message.

    Raises:
        UserError: there is no such loss.
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


_counted: ContextVar[tuple[Tensor, ...]] = ContextVar("counted", default=())


@contextmanager
def counting(*tokens: Tensor) -> Iterator[None]:
    """Say, around a forward pass over padded texts, which tokens are real; padding then counts in no
    statistic.

    Args:
        tokens: [batch, tokens], nonzero where a token is real; one more for each part of the sequence that
            some layers read alone.
    """
    token = _counted.set(tuple(mask.bool() for mask in tokens))
    try:
        yield
    finally:
        _counted.reset(token)


def counted_tokens() -> tuple[Tensor, ...]:
    """The masks of the innermost ``counting``, [batch, tokens] each; none where all tokens count."""
    return _counted.get()
