"""Read rows of tokens: windows of a text, or integers from a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoflap.data.text.bos import begin, own_tokens
from ecoflap.errors import UserError, did_you_mean


def tokenize(tokenizer: Any, text: str, opening: Sequence[int] = ()) -> Tensor:
    """The text as one row of token ids, [tokens], without special tokens but those of the opening."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0]
    return torch.cat([ids.new_tensor(opening), ids])


def windows(
    tokens: Tensor, length: int, option: str, stride: int | None = None, first: Sequence[int] = ()
) -> Tensor:
    """Cut a text [tokens] into rows [rows, length]; the remainder is dropped.

    Args:
        tokens: the token ids of the text.
        length: tokens per row.
        option: the config group, for the message.
        stride: tokens between the starts of two rows; None for rows that do not overlap.
        first: the tokens that each row begins with; fewer of the text follow.

    Raises:
        UserError: if the text is shorter than one row, or the stride longer than what a row has of it.
    """
    own = own_tokens(length, first, option)
    if stride is not None and stride > own:
        raise UserError(
            f"{option}.stride={stride} is more than the {own} tokens that a window of {length} has of the"
            " text; choose no more"
        )
    if len(tokens) < own:
        raise UserError(
            f"{option}.sequence_length={length} is more than the {len(tokens)} tokens of the text; give a"
            " longer text or a smaller length"
        )
    return begin(tokens.unfold(0, own, stride or own), first)


def check_characters(texts: Iterable[str], length: int, option: str) -> None:
    """Refuse texts that are too short for any window, as a token has at least one byte.

    Raises:
        UserError: if no text can have a window.
    """
    longest = max((len(text.encode()) for text in texts), default=0)
    if longest < length:
        raise UserError(
            f"{option}.sequence_length={length} is more than the {longest} bytes of the longest text; give a"
            " longer text or a smaller length"
        )


def read_token_rows(path: str, key: str, option: str) -> Tensor:
    """Read an integer tensor [rows, tokens] from a safetensors file.

    Raises:
        UserError: if there is no such file or tensor, or it has a wrong type or rank.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"{option}.path={path}: there is no such file; give a safetensors file with an integer tensor"
            " [rows, tokens]"
        )
    try:
        with safe_open(file, "pt") as content:
            keys = list(content.keys())
            if key not in keys:
                raise UserError(f"{option}.key={key}: {path} has no such tensor; {did_you_mean(key, keys)}")
            tokens = content.get_tensor(key)
    except SafetensorError as error:
        raise UserError(f"{option}.path={path} is not a safetensors file ({error})") from None
    if (
        tokens.ndim != 2
        or tokens.numel() == 0
        or tokens.is_floating_point()
        or tokens.is_complex()
        or tokens.dtype == torch.bool
    ):
        raise UserError(
            f"{option}.key={key} is {tokens.dtype} {list(tokens.shape)}; token ids are an integer tensor"
            " [rows, tokens]"
        )
    if tokens.shape[1] < 2:
        raise UserError(
            f"{option}.key={key} has rows of one token; a language model is measured on the next token, so a"
            " row needs two or more"
        )
    tokens = tokens.long()  # unsigned 16-bit ids, a common format, know no minimum
    if int(tokens.min()) < 0:
        raise UserError(f"{option}.key={key} holds ids from {int(tokens.min())} on; token ids are 0 or more")
    return tokens
