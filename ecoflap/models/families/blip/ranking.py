"""BLIP's choice from a list of answers: candidates by their first token, then the smallest whole loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from ecoflap.models.core.logits import finite
from ecoflap.models.core.losses import IGNORED

SMOOTHING = 0.1  # BLIP ranks by the loss that it was trained with


def best_answers(
    decoder: Any, states: Tensor, mask: Tensor, input_ids: Tensor, attention_mask: Tensor, k: int
) -> list[int]:
    """The answer with the smallest loss for each question, among the ``k`` with the likeliest first tokens.

    Args:
        decoder: the text decoder.
        states: encoder states of the questions with their pictures, [questions, tokens, features].
        mask: which tokens of the questions are real, [questions, tokens].
        input_ids: every answer as the decoder writes it: start token, words, end; [answers, tokens].
        attention_mask: which of these are real, [answers, tokens].
        k: number of candidates; all if there are fewer.

    Returns:
        The index of the answer to each question, [questions].

    Raises:
        NumericalError: if a loss is not finite.
    """
    start = input_ids[:1, :1].expand(len(states), 1)
    first = (
        decoder(input_ids=start, encoder_hidden_states=states, encoder_attention_mask=mask)
        .logits[:, 0]
        .float()
        .softmax(dim=-1)
    )
    candidates = first[:, input_ids[:, 1]].topk(min(k, len(input_ids)), dim=1).indices
    found = []
    # One question at a time, because the logits of all candidates of all questions need much memory.
    for row, chosen in enumerate(candidates):
        question = states[row : row + 1], mask[row : row + 1]
        losses = _losses(decoder, *question, input_ids[chosen], attention_mask[chosen])
        found.append(int(chosen[finite(losses).argmin()]))
    return found


def _losses(decoder: Any, states: Tensor, mask: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The sum over each answer's tokens of the smoothed cross-entropy, [answers]."""
    longest = int(attention_mask.sum(dim=1).max())
    input_ids, attention_mask = input_ids[:, :longest], attention_mask[:, :longest]
    seen = {
        "encoder_hidden_states": states.expand(len(input_ids), -1, -1),
        "encoder_attention_mask": mask.expand(len(input_ids), -1),
    }
    logits = decoder(input_ids=input_ids, attention_mask=attention_mask, **seen).logits[:, :-1].float()
    targets = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, IGNORED)
    return cross_entropy(logits.transpose(1, 2), targets, reduction="none", label_smoothing=SMOOTHING).sum(
        dim=1
    )
