"""Options that the models of transformers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DTYPES = ("float32", "float16", "bfloat16")
ANY_DTYPE = ("auto", *DTYPES)
OFFLOAD = ("none", "cpu", "disk")
"""Where blocks and hidden states are while they are not in use."""


@dataclass(frozen=True)
class PretrainedOptions:
    """A model from a hub id, or from a folder that ``save_pretrained`` wrote.

    Attributes:
        path: id of the model on the hub, or a folder.
        name: what logs and result files call it.
        dtype: dtype of the weights: auto (the checkpoint's), float32, float16 or bfloat16.
        revision: branch, tag or commit of the model on the hub; null for the default branch.
        towers: {tower: path of its block list}, where it should not be found from the tree.
        save: write the pruned checkpoint into the run's folder: true or dense, bitmask, coded.
        architecture: the settings of the real model, so that ``inspect`` needs no download; a local folder's
            own settings come first.
    """

    path: str
    name: str = "pretrained"
    dtype: str = field(default="auto", metadata={"choices": ANY_DTYPE})
    revision: str | None = None
    towers: dict[str, str] | None = None
    save: bool | str = False
    architecture: dict[str, Any] | None = None
