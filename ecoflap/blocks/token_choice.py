"""Which tokens count in the statistics of a block's layers: all, those of a kind, or those that it moves.

The choice concerns towers that read text and visual tokens in one sequence, as the loss declares them; in
other towers, all tokens count.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ecoflap.blocks.block_call import extract_hidden
from ecoflap.blocks.stream import Stream
from ecoflap.data.batch import Batch, first_samples
from ecoflap.distributed.collectives import gathered
from ecoflap.errors import NumericalError, UserError
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.hooks import hooks
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.token_kinds import misfit
from ecoflap.models.core.towers import Block, Tower

log = logging.getLogger(__name__)

Masks = tuple[Tensor, ...]


def require_tokens(
    model: PrunableModel, towers: Sequence[Tower], batches: Sequence[Batch], choice: str
) -> None:
    """Refuse a choice of tokens that no tower can honour, and log which towers count all tokens instead.

    Args:
        model: the model.
        towers: the towers to look at.
        batches: of the calibration set; empty if nothing is measured.
        choice: of the tokens that count, see ``choose_tokens``.

    Raises:
        UserError: if the choice is not ``all``, and ``require_kinds`` refuses.
    """
    if choice == "all" or not batches:
        return
    asked, missed = f"tokens={choice}", _misfits(model, towers, batches[0])
    known = _known(model, towers, missed, asked)
    for tower in towers:
        if tower not in known:
            level = logging.WARNING if missed.get(tower.name) else logging.INFO
            why = missed.get(tower.name, "the loss doesn't say which of them are visual")
            _say_once(level, f"{asked}: all tokens of tower {tower.name} ({tower.path}) count: {why}")
    routed = [layer for tower in known for layer in tower.layers if layer.is_routed and not layer.is_expert]
    if routed:
        said = f"{asked}: in {len(routed)} layers of experts, all tokens count that a router sends them"
        _say_once(logging.INFO, said)


@cache
def _say_once(level: int, message: str) -> None:
    """Log once per process: a run walks over the same towers several times."""
    log.log(level, "%s", message)


def require_kinds(
    model: PrunableModel, towers: Sequence[Tower], batches: Sequence[Batch], asked: str
) -> list[Tower]:
    """The towers that read text and visual tokens, as the loss declares.

    Args:
        model: the model.
        towers: the towers to look at.
        batches: of the calibration set; the first two samples are looked at.
        asked: the option that asks for them, for the message.

    Raises:
        UserError: if there are none.
    """
    return _known(model, towers, _misfits(model, towers, batches[0]), asked)


def _misfits(model: PrunableModel, towers: Sequence[Tower], batch: Batch) -> dict[str, str]:
    """How the kinds of tokens that the loss declares of each tower miss what its blocks read.

    Args:
        model: the model.
        towers: the towers to look at.
        batch: the first two samples are looked at.

    Returns:
        {tower: "" where they fit}; without the towers that the loss says nothing of.
    """
    found: dict[str, str] = {}

    def look(tower: str, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        missed = misfit(tower, extract_hidden(arguments, keywords)[1])
        if missed is not None and found.get(tower) != "":  # a tower may be called several times
            found[tower] = missed

    looking = (
        tower.blocks[0].module.register_forward_pre_hook(partial(look, tower.name), with_kwargs=True)
        for tower in towers
    )
    with hooks(looking), quiet_forward(model.module):
        model.loss(first_samples(batch, 2))
    return found


def _known(
    model: PrunableModel, towers: Sequence[Tower], missed: Mapping[str, str], asked: str
) -> list[Tower]:
    """The towers whose kinds of tokens are known.

    Raises:
        UserError: if there are none.
    """
    known = [tower for tower in towers if missed.get(tower.name) == ""]
    if not known:
        names = ", ".join(tower.name for tower in towers)
        whys = "".join(f"; in tower {name}, {why}" for name, why in missed.items())
        group = asked.partition("=")[0]
        instead = "use tokens=all" if group == "tokens" else f"choose another {group}"
        raise UserError(
            f"{asked} needs a pruned tower that reads text and visual tokens, and {model.name} has none"
            f" (pruned: {names}{whys}); {instead}, or prune such a tower"
        )
    return known


@torch.no_grad()
def choose_tokens(choice: str, tower: Tower, block: Block, streams: Sequence[Stream]) -> list[Masks]:
    """The tokens that count in the statistics of a block's layers.

    Args:
        choice: ``all``; ``text``, the tokens that aren't visual; ``answer``, those of the answer; ``atv``
            (ATV, CVPR 2026), text and the visual tokens that the block moves most, see ``most_moved``.
        tower: the tower of the block.
        block: the block as it is measured, dense.
        streams: the batches with the inputs of the block.

    Returns:
        For each stream, the masks [batch, tokens] of what counts; empty where all tokens do.

    Raises:
        UserError: if no token of the samples is visual, or none of the chosen ones is there.
    """
    if choice == "all":
        return [stream.counted for stream in streams]
    known = [(stream.kinds, stream.counted) for stream in streams if stream.kinds is not None]
    visual = [without_padding(kinds.visual, counted) for kinds, counted in known]
    seen = any(bool(mask.any()) for mask in visual)
    of_all = gathered((len(streams), len(known), seen))  # of the samples of all processes
    batches, informed = sum(one[0] for one in of_all), sum(one[1] for one in of_all)
    if not informed:
        return [stream.counted for stream in streams]
    if informed < batches:
        raise UserError(
            f"tokens={choice}: for some batches, the loss doesn't say which tokens of tower {tower.name}"
            f" ({tower.path}) are visual; use tokens=all"
        )
    if not any(one[2] for one in of_all):
        raise UserError(
            f"tokens={choice}: the calibration samples have no visual tokens in tower {tower.name}"
            f" ({tower.path}); use tokens=all, or calibrate on samples with pictures"
        )
    if choice == "answer":
        chosen = [without_padding(kinds.answer, counted) for kinds, counted in known]
    else:
        chosen = [without_padding(~kinds.visual, counted) for kinds, counted in known]
    if choice == "atv":
        chosen = most_moved(chosen, visual, [movement(block, stream) for stream in streams])
    if not any(gathered(any(bool(mask.any()) for mask in chosen))):
        raise UserError(
            f"tokens={choice}: the calibration samples have no such tokens in tower {tower.name}"
            f" ({tower.path}); use another choice, or leave the tower out of towers"
        )
    return [(mask,) for mask in chosen]


def without_padding(mask: Tensor, counted: Masks) -> Tensor:
    """The tokens of a mask that count.

    Args:
        mask: of a tower's sequence, [batch, tokens].
        counted: masks of the real tokens, see ``Stream``.
    """
    for real in counted:
        if real.shape == mask.shape:
            mask = mask & real
    return mask


def movement(block: Block, stream: Stream) -> Tensor:
    """How far a block turns each hidden state: 1 - cos(input, output), [batch, tokens], fp32.

    Hyper-connections keep several states of a token, [batch, tokens, states, features], which turn as one.
    """
    call, hidden = stream.call(stream.block), stream.hidden
    before, after = (states.float().flatten(2) for states in (hidden, call.run(block.module, hidden)))
    return 1 - cosine_similarity(before, after, dim=-1)


def most_moved(texts: Sequence[Tensor], visuals: Sequence[Tensor], moved: Sequence[Tensor]) -> list[Tensor]:
    """The text tokens, and as many of the visual tokens that move most as the block moves them far.

    With r the mean movement of all visual tokens of all samples, of all processes, sample j counts

        k_j = min(visual_j, round(min(1, r) text_j))

    of its visual tokens (ATV, CVPR 2026; its alpha is 1).

    Args:
        texts: whether a token is text, [batch, tokens] for each batch; padding is of neither kind.
        visuals: whether it is visual.
        moved: how far each token moves, [batch, tokens] each.

    Returns:
        Masks, [batch, tokens] each. The earlier of equal tokens is chosen.

    Raises:
        NumericalError: if a movement is not finite.
    """
    own = [
        (float(one[visual].cpu().double().sum()), int(visual.sum()))
        for visual, one in zip(visuals, moved, strict=True)
    ]
    of_all = [batch for others in gathered(own) for batch in others]
    total = sum(distance for distance, _ in of_all)
    if not math.isfinite(total):
        raise NumericalError(
            "tokens=atv: how far a block moves its hidden states is not finite; use model.dtype=float32"
        )
    ratio = min(1.0, total / sum(tokens for _, tokens in of_all))
    masks = []
    for text, visual, one in zip(texts, visuals, moved, strict=True):
        wanted = [round(ratio * count) for count in text.sum(dim=1).tolist()]
        far = one.where(visual, float("-inf")).sort(dim=1, descending=True, stable=True).indices
        chosen = torch.zeros_like(visual)
        for row, order, count in zip(chosen, far, wanted, strict=True):
            row[order[:count]] = True
        masks.append(text | (chosen & visual))
    return masks
