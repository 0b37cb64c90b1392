"""Whether a language model predicts each token from those before it alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ecoflap.errors import UserError

ALWAYS_READ_AHEAD = ("cpmant", "xlnet")  # as transformers calls them with nothing but tokens
TOLERANCE = 1e-4  # of the range of logits; those of decoders are equal, also in half precision


def require_causal(module: Any) -> None:
    """Refuse what transformers puts behind the head of a decoder though it reads all tokens, such as BERT.

    Raises:
        UserError: if the config tells that the model has no causal mask.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    config = getattr(module, "config", None)  # a module of one's own has none
    kind = getattr(config, "model_type", None)
    # All masked ones but XLM say it by is_decoder; decoders of BART's kind set it themselves.
    is_causal = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if kind in MASKED and not is_causal:
        raise _refusal(module, ", or set is_decoder=true in config.json if it was trained as one")
    if kind in ALWAYS_READ_AHEAD:
        raise _refusal(module)


@torch.no_grad()
def refuse_reading_ahead(module: Any, row: Tensor) -> None:
    """Refuse a model, of whatever code, whose logits depend on later tokens.

    Args:
        module: takes ``input_ids`` and returns ``logits``.
        row: token ids that it can read, [tokens], at least two.

    Raises:
        UserError: if the logits before the last token change with it.
    """
    rows = row.expand(2, -1).clone()
    rows[1, -1] = int(row[-1] == 0)
    one, other = module(input_ids=rows, use_cache=False).logits[:, :-1].float()
    changes = (one - other).abs().amax(dim=-1)
    # At all places: rounding may send a token of a mixture to another expert, which changes those behind it.
    if (changes > TOLERANCE * (one.amax(dim=-1) - one.amin(dim=-1))).all():
        raise _refusal(module)


def _refusal(module: Any, instead: str = "") -> UserError:
    return UserError(
        f"{type(module).__name__} reads the tokens that it should predict, so its next-token loss and"
        f" perplexity say nothing; choose a decoder LM{instead}"
    )
