"""Ranks of the right candidates among all, and recalls by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ecoflap.evaluate.inputs import error_of_mean
from ecoflap.storage.results.metrics import STANDARD_ERROR

RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Found:
    """The nearest candidates of one direction.

    Attributes:
        ranks: how many wrong ones are at least as good as the best right one, per query.
        wrong: how many wrong ones there are, per query.
        best: the best candidates, [queries, k].
        scores: theirs.
        right: which of them are right.
    """

    ranks: Tensor
    wrong: Tensor
    best: Tensor
    scores: Tensor
    right: Tensor


def search(score: Callable[[Tensor], Tensor], asks: Tensor, has: Tensor, count: int, block: int) -> Found:
    """Find the nearest candidates of each query, ``block`` queries at a time.

    Args:
        score: similarities of some queries with all candidates, [queries, candidates].
        asks: the picture of each query, [queries].
        has: the picture of each candidate, [candidates].
        count: number of candidates to keep per query.
        block: queries at a time.
    """
    found = []
    for rows in torch.arange(len(asks)).split(block):
        scores, right = score(rows), asks[rows, None] == has
        values, best = scores.topk(min(count, len(has)), dim=1)
        found.append((rank(scores, right), (~right).sum(dim=1), best, values, right.gather(1, best)))
    return Found(*(torch.cat(column) for column in zip(*found, strict=True)))


def rank(scores: Tensor, right: Tensor) -> Tensor:
    """The number of wrong candidates before the first right one, [queries]; in ties, right ones come last."""
    first = scores.masked_fill(~right, float("-inf")).amax(dim=1, keepdim=True)
    return ((scores >= first) & ~right).sum(dim=1)


def rank_again(found: Found, logits: Tensor) -> Tensor:
    """Ranks after matching the best candidates; all others follow them, right ones last."""
    return torch.where(found.right.any(dim=1), rank(found.scores + logits, found.right), found.wrong)


def nearest(found: Found) -> Tensor:
    """The candidate of the highest score, [queries]."""
    return found.best.gather(1, found.scores.argmax(dim=1, keepdim=True))[:, 0]


def recalls(texts: Tensor, images: Tensor, suffix: str) -> dict[str, float]:
    """Recalls of both directions, in percent, and their means.

    Args:
        texts: rank of the first right caption of each picture, [pictures].
        images: rank of the right picture of each caption, [captions].
        suffix: end of their names.
    """
    found = {
        f"{name}{suffix}": 100 * hits.mean().item()
        for name, hits in (_hits("text", texts) | _hits("image", images)).items()
    }
    both = (found[f"text_recall_mean{suffix}"] + found[f"image_recall_mean{suffix}"]) / 2
    return found | {f"recall_mean{suffix}": both}


def recall_errors(texts: Tensor, images: Tensor, owner: Tensor, suffix: str) -> dict[str, float]:
    """Standard errors of the recalls of each direction, over pictures, among the given candidates.

    Captions of one picture stand or fall together, so pictures are the items: the error is that of a ratio of
    sums over them.

    Args:
        texts: see ``recalls``.
        images: see ``recalls``.
        owner: the picture of each caption, [captions].
        suffix: end of their names.
    """
    pictures = torch.arange(len(texts))
    errors = {name: _error(hits, pictures, len(texts)) for name, hits in _hits("text", texts).items()}
    errors |= {name: _error(hits, owner, len(texts)) for name, hits in _hits("image", images).items()}
    return {f"{name}{suffix}{STANDARD_ERROR}": error for name, error in errors.items()}


def _hits(kind: str, ranks: Tensor) -> dict[str, Tensor]:
    """{recall: what each query contributes, [queries]}."""
    hits = {f"{kind}_recall_{most}": (ranks < most).double() for most in RANKS}
    return hits | {f"{kind}_recall_mean": torch.stack(list(hits.values())).mean(dim=0)}


def _error(hits: Tensor, owner: Tensor, pictures: int) -> float:
    apart = torch.zeros(pictures, dtype=hits.dtype).index_add(0, owner, hits - hits.mean())
    return 100 * error_of_mean((apart * pictures / len(hits)).tolist())
