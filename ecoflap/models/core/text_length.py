"""The longest text that a model can read, in tokens."""

from __future__ import annotations

import logging
import re
from functools import cache
from typing import Any

from torch import nn

from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.tower_names import READS

log = logging.getLogger(__name__)

TABLE = re.compile(r"(^|\.)(\w*position\w*|wpe)$")
OTHER_MODALITY = re.compile(r"vision|visual|image|patch|video|audio")


def most_tokens(module: nn.Module) -> int | None:
    """The longest text for which a model has learned positions, in tokens; None if it computes positions."""
    tables = {
        path: table
        for path, table in module.named_modules()
        if isinstance(table, nn.Embedding) and TABLE.search(path)
    }
    lengths = (_positions(table) for path, table in tables.items() if not _is_not_text(module, path))
    return min(lengths, default=None)


def _is_not_text(module: nn.Module, path: str) -> bool:
    """Whether a table of positions is for images or audio.

    Decided by its path, or by what the part of the model around it reads.
    """
    if OTHER_MODALITY.search(path):
        return True
    parts = path.split(".")
    if "decoder" in parts:  # writes text; old releases declare audio as the input of all parts of Whisper
        return False
    parents = [module.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, 0, -1)]
    reads = (getattr(parent, "main_input_name", None) for parent in parents)
    return next((name for name in reads if name is not None), None) in READS


def trained_tokens(module: nn.Module) -> int | None:
    """The longest text that a model was trained for, in tokens; None if its config doesn't say."""
    config: Any = getattr(module, "config", None)
    most = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def _positions(table: nn.Embedding) -> int:
    """Number of usable positions: RoBERTa's begin after the padding's row, OPT's and BART's at an offset."""
    unused = table.padding_idx + 1 if table.padding_idx is not None else getattr(table, "offset", 0)
    return table.num_embeddings - int(unused)


def at_most(model: PrunableModel, tokens: int) -> int:
    """The given number of tokens, or as many as the model can read if that is fewer."""
    most = most_tokens(model.module)
    return tokens if most is None else min(tokens, most)


def window_tokens(model: PrunableModel, tokens: int) -> int:
    """The given number of tokens, or as many as the model can read or was trained for if these are fewer."""
    return min(at_most(model, tokens), trained_tokens(model.module) or tokens)


def require_length(model: PrunableModel, tokens: int, option: str) -> None:
    """Refuse texts longer than a model can read, and warn of texts longer than it was trained for.

    On an accelerator, too long a text ends in a device assertion that does not name the reason.

    Args:
        model: any model.
        tokens: length of the longest text, in tokens.
        option: the option that sets it, for the message.

    Raises:
        UserError: if texts are longer than the model can read.
    """
    most = most_tokens(model.module)
    if most is not None and tokens > most:
        raise UserError(f"{option}: {model.name} has positions for {most} tokens; choose no more")
    if most is None:
        warn_of_length(model, tokens, option)


def warn_of_length(model: PrunableModel, tokens: int, option: str) -> None:
    """Warn of texts longer than a model was trained for; see ``require_length``."""
    trained = trained_tokens(model.module)
    if trained is not None and tokens > trained:
        _warn_once(
            f"{option}: {model.name} was made for {trained} tokens (max_position_embeddings); it is worse on"
            " more"
        )


@cache
def _warn_once(message: str) -> None:
    """Warn once per process: models are checked before and after loading, and by each run of a sweep."""
    log.warning("%s", message)
