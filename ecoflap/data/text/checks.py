"""What a model needs to read a text, or rows of tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.text_length import require_length


def require_readable(model: PrunableModel, rows: Tensor, key: str, option: str) -> None:
    """Refuse rows of tokens that a language model can't read.

    Args:
        model: the language model.
        rows: [rows, tokens].
        key: their name in the file.
        option: the config group of the part, for the message.

    Raises:
        UserError: if an id is outside the vocabulary, or the rows are longer than the model's positions.
    """
    vocabulary = vocabulary_of(model)
    if int(rows.max()) >= vocabulary:
        raise UserError(
            f"{option}.key={key} holds ids from {int(rows.min())} to {int(rows.max())}; the model has a"
            f" vocabulary of {vocabulary}"
        )
    require_length(model, rows.shape[1], f"{option}.key={key} has rows of {rows.shape[1]} tokens")


def vocabulary_of(model: PrunableModel) -> int:
    """The number of token ids in the model's input embedding."""
    module: Any = model.module
    return int(module.get_input_embeddings().num_embeddings)


def require_tokenizer(model: PrunableModel, option: str) -> None:
    """Refuse a model without a tokenizer, unless it is on the meta device, where none is read.

    Raises:
        UserError: if it has none.
    """
    if model.processor is None and model.device.type != "meta":
        raise UserError(
            f"{option} is a text, and {model.name} has no tokenizer to read it with; load the model with its"
            " tokenizer, as in ecoflap.load(model, tokenizer)"
        )


def require_language_model(model: PrunableModel, option: str) -> None:
    """Refuse a model that reads more than text.

    Raises:
        UserError: if it reads images.
    """
    if hasattr(model.processor, "image_processor"):
        raise UserError(
            f"{option} is a text for language models, and {model.name} answers questions about images; choose"
            f" another {option.partition('=')[0]}, such as easy_vqa"
        )
