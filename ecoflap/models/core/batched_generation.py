"""Generation from a batch of texts, also by models that answer otherwise than if each text were alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

log = logging.getLogger(__name__)

Generate = Callable[[Tensor, Tensor], Tensor]

TOKENS_COMPARED = 3  # a model's own options may force the first token or the last one
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the range of scores; padding changes tenths of it
HALF_TOLERANCE = 5e-2

# Whether answers depend on the batch, by whether it has padding.
_depends: WeakKeyDictionary[Any, dict[bool, bool]] = WeakKeyDictionary()


def generate_batch(module: Any, generate: Generate, ids: Tensor, mask: Tensor, pad: int) -> Tensor:
    """Generate from each text as if it were alone: in one batch, or one by one if the model needs it.

    RecurrentGemma and xLSTM read padding as tokens, the decoders of BART and TrOCR count it in their
    positions, and RWKV mixes the rows of a batch, so that an answer would depend on the other texts. The
    first batch shows it, and the first one with padding.

    Args:
        module: a model of transformers that generates.
        generate: called with ids and mask of some of the rows; returns the new tokens, [rows, new tokens].
        ids: token ids, padded on the left, [rows, tokens].
        mask: attention mask, [rows, tokens].
        pad: token id that answers are padded with.

    Returns:
        The new tokens, padded on the right, [rows, new tokens].
    """
    if len(ids) == 1 or not _depends_on_batch(module, ids, mask):
        return generate(ids, mask)
    answers = [generate(*_alone(ids, mask, row))[0] for row in range(len(ids))]
    return pad_sequence(answers, batch_first=True, padding_value=pad)


def _depends_on_batch(module: Any, ids: Tensor, mask: Tensor) -> bool:
    """What ``depends_on_batch`` found for this model's first batch of this kind."""
    known = _depends.setdefault(module, {})
    padded = not bool(mask.all())
    if padded not in known:
        known[padded] = depends_on_batch(module, ids, mask)
        if known[padded]:
            log.warning(
                "%s: answers depend on the %s of a batch; texts are answered one at a time",
                type(module).__name__,
                "padding" if padded else "other texts",
            )
    return known[padded]


def depends_on_batch(module: Any, ids: Tensor, mask: Tensor) -> bool:
    """Whether the scores of what follows the shortest text differ from those of the text alone.

    Args:
        module: a model of transformers that generates.
        ids: token ids, padded on the left, [rows, tokens].
        mask: attention mask, [rows, tokens].
    """
    row = int(mask.sum(dim=1).argmin())
    together, alone = _generated(module, ids, mask, row), _generated(module, *_alone(ids, mask, row), 0)
    tolerance = TOLERANCE.get(module.dtype, HALF_TOLERANCE)
    for (token, scores), (expected_token, expected) in zip(together, alone, strict=False):
        finite = scores.isfinite() & expected.isfinite()
        if finite.any():
            span = expected[finite].max() - expected[finite].min()
            if bool((scores - expected)[finite].abs().max() > tolerance * span):
                return True
        if token != expected_token:
            return False  # a tie: later scores follow other tokens
    return False


def _alone(ids: Tensor, mask: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """One row, [1, tokens], without its padding; an empty text has one token of it."""
    length = max(1, int(mask[row].sum()))
    return ids[row : row + 1, -length:], mask[row : row + 1, -length:]


def _generated(module: Any, ids: Tensor, mask: Tensor, row: int) -> list[tuple[int, Tensor]]:
    """The first tokens that follow one row of a batch, and the scores, [vocabulary], behind each."""
    found = module.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=TOKENS_COMPARED,
        num_beams=1,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    tokens = found.sequences[row, -len(found.scores) :].tolist()
    return [(token, scores[row].float()) for token, scores in zip(tokens, found.scores, strict=True)]
