"""Generation from a batch of texts, also by models that answer otherwise than if each text were alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

log = logging.getLogger(__name__)

Inputs = Mapping[str, Any]
Generate = Callable[[Inputs], Tensor]
Alone = Callable[[int], Inputs]

TOKENS_COMPARED = 3  # a model's own options may force the first token or the last one
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the range of scores; padding changes tenths of it
HALF_TOLERANCE = 5e-2

# Whether answers depend on the batch, by whether it has padding.
_depends: WeakKeyDictionary[Any, dict[bool, bool]] = WeakKeyDictionary()


def generate_texts(module: Any, generate: Generate, ids: Tensor, mask: Tensor, pad: int) -> Tensor:
    """``generate_batch`` for texts that are token ids, [rows, tokens], padded on the left."""

    def alone(row: int) -> Inputs:
        """One row, [1, tokens], without its padding; an empty text has one token of it."""
        length = max(1, int(mask[row].sum()))
        return {
            "input_ids": ids[row : row + 1, -length:],
            "attention_mask": mask[row : row + 1, -length:],
        }

    return generate_batch(module, generate, {"input_ids": ids, "attention_mask": mask}, alone, pad)


def generate_batch(module: Any, generate: Generate, inputs: Inputs, alone: Alone, pad: int) -> Tensor:
    """Generate from each text as if it were alone: in one batch, or one by one if the model needs it.

    RecurrentGemma and xLSTM read padding as tokens, the decoders of BART, TrOCR and Kosmos-2 count it in
    their positions, and RWKV mixes the rows of a batch, so that an answer would depend on the other texts.
    The first batch shows it, and the first one with padding.

    Args:
        module: a model of transformers that generates.
        generate: called with the inputs of the batch or of one text; returns the new tokens,
            [rows, new tokens].
        inputs: of the batch, with ``input_ids`` and ``attention_mask``, [rows, tokens] each.
        alone: the inputs of one row of the batch, without padding.
        pad: token id that answers are padded with.

    Returns:
        The new tokens, padded on the right, [rows, new tokens].
    """
    rows = len(inputs["input_ids"])
    if rows == 1 or not _depends_on_batch(module, inputs, alone):
        return generate(inputs)
    answers = [generate(alone(row))[0] for row in range(rows)]
    return pad_sequence(answers, batch_first=True, padding_value=pad)


def _depends_on_batch(module: Any, inputs: Inputs, alone: Alone) -> bool:
    """What ``depends_on_batch`` found for this model's first batch of this kind."""
    known = _depends.setdefault(module, {})
    padded = not bool(inputs["attention_mask"].all())
    if padded not in known:
        known[padded] = depends_on_batch(module, inputs, alone)
        if known[padded]:
            log.warning(
                "%s: answers depend on the %s of a batch; texts are answered one at a time",
                type(module).__name__,
                "padding" if padded else "other texts",
            )
    return known[padded]


def depends_on_batch(module: Any, inputs: Inputs, alone: Alone) -> bool:
    """Whether the scores of what follows the shortest text differ from those of the text alone.

    Args:
        module: a model of transformers that generates.
        inputs: see ``generate_batch``.
        alone: see ``generate_batch``.
    """
    row = int(inputs["attention_mask"].sum(dim=1).argmin())
    together, expected = _generated(module, inputs, row), _generated(module, alone(row), 0)
    tolerance = TOLERANCE.get(module.dtype, HALF_TOLERANCE)
    for (token, scores), (expected_token, expected_scores) in zip(together, expected, strict=False):
        finite = scores.isfinite() & expected_scores.isfinite()
        if finite.any():
            span = expected_scores[finite].max() - expected_scores[finite].min()
            if bool((scores - expected_scores)[finite].abs().max() > tolerance * span):
                return True
        if token != expected_token:
            return False  # a tie: later scores follow other tokens
    return False


def _generated(module: Any, inputs: Inputs, row: int) -> list[tuple[int, Tensor]]:
    """The first tokens that follow one row of a batch, and the scores, [vocabulary], behind each."""
    found = module.generate(
        **inputs,
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
