"""How long a text a model can read."""

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
OF_OTHERS = re.compile(r"vision|visual|image|patch|video|audio")


def most_tokens(module: nn.Module) -> int | None:
    """The longest text for which a model has learned positions; null where it computes them for any
    length.
    """
    tables = {
        path: table
        for path, table in module.named_modules()
        if isinstance(table, nn.Embedding) and TABLE.search(path)
    }
    return min(
        (_places(table) for path, table in tables.items() if not _is_of_others(module, path)), default=None
    )


def _is_of_others(module: nn.Module, path: str) -> bool:
    """Whether a table is for pictures or sounds, by its path or by what the part of the model around it
    reads.
    """
    if OF_OTHERS.search(path):
        return True
    parts = path.split(".")
    if (
        "decoder" in parts
    ):  # which writes texts; old releases say of all parts of Whisper that they read sound
        return False
    around = [module.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, 0, -1)]
    reads = (getattr(part, "main_input_name", None) for part in around)
    return next((name for name in reads if name is not None), None) in READS


def trained_tokens(module: nn.Module) -> int | None:
    """The longest text that a model with computed positions was made for, where its config says so."""
    config: Any = getattr(module, "config", None)
    most = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def _places(table: nn.Embedding) -> int:
    """Rows of a table of positions that are one's place: RoBERTa begins behind the padding's row, OPT and
    BART at an offset.
    """
    before = table.padding_idx + 1 if table.padding_idx is not None else getattr(table, "offset", 0)
    return table.num_embeddings - int(before)


def at_most(model: PrunableModel, tokens: int) -> int:
    """So many tokens, or as many as the model can read."""
    most = most_tokens(model.module)
    return tokens if most is None else min(tokens, most)


def require_length(model: PrunableModel, tokens: int, option: str) -> None:
    """Refuse texts that are longer than a model can read, and warn of texts longer than it was made for.

    On an accelerator, a model dies of too long a text without a word of the reason.

    Raises:
        UserError: if texts are longer than the model can read.
    """
    most = most_tokens(model.module)
    if most is not None and tokens > most:
        raise UserError(f"{option}: {model.name} has positions for {most} tokens; choose no more")
    trained = trained_tokens(model.module)
    if most is None and trained is not None and tokens > trained:
        _warn_once(
            f"{option}: {model.name} was made for {trained} tokens (max_position_embeddings); it is worse on"
            " more"
        )


@cache
def _warn_once(message: str) -> None:
    """Say it; models are checked before their weights are read and after, and by each run of a sweep."""
    log.warning("%s", message)
