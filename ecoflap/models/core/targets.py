"""The tokens that an encoder-decoder is to write."""

from __future__ import annotations

from typing import Any

from ecoflap.data.text.bos import surrounding_tokens


def start_token(module: Any) -> int | None:
    """The token that the decoder starts with; None if the config doesn't say."""
    config = module.config
    token: int | None = getattr(config, "decoder_start_token_id", None)
    return getattr(getattr(config, "decoder", None), "bos_token_id", None) if token is None else token


def target_tokens(module: Any, tokenizer: Any, text: str) -> list[int]:
    """The tokens that the decoder should write behind its start token, with the one that ends a text.

    T5Gemma's tokenizer, which is that of a decoder, begins each text with the start token, and ends none.

    Args:
        module: the encoder-decoder, whose decoder reads its start token and then the targets.
        tokenizer: of the model.
        text: the target.
    """
    ids = list(tokenizer(text)["input_ids"])
    before, behind = surrounding_tokens(tokenizer)
    begun, end = before[:1] == [start_token(module)], tokenizer.eos_token_id
    return ids[int(begun) :] + ([] if behind or end is None else [end])
