"""Data sets of the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from ecoflap.errors import UserError


def load_split(
    dataset: str, config: str | None, split: str, *, asked: str, instead: str, obtain: str = "", **more: Any
) -> Any:
    """A split of a data set, as ``datasets`` loads it: from the hub, or from its cache on this machine.

    Args:
        dataset: the id of the data set.
        config: its configuration; None for its only one.
        split: the name of the split.
        asked: the option that asks, and for what, for the message.
        instead: what can be given instead, for the message.
        obtain: how to get it, as a sentence, for the message.
        more: further arguments of ``load_dataset``.

    Raises:
        UserError: if it can't be read.
    """
    import datasets

    try:
        return datasets.load_dataset(dataset, config, split=split, **more)
    except Exception as error:  # whatever a hub, a proxy or a broken cache makes of it
        raise UserError(
            f"{asked} could not be read from the hub ({type(error).__name__}); give {instead}, or unset"
            f" HF_HUB_OFFLINE while online{'. ' * bool(obtain)}{obtain}"
        ) from error
