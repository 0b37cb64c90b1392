"""Refuse models that change their own weights in a forward pass."""

from __future__ import annotations

from torch import nn

from ecoflap.errors import UserError


def refuse_rescaled(module: nn.Module) -> None:
    """Refuse an RWKV that divides weights of its later blocks in its first forward pass in evaluation mode.

    They would be saved divided, and be divided again by the loaded model.

    Raises:
        UserError: if it does.
    """
    config = getattr(module, "config", None)
    every, blocks = (getattr(config, name, None) for name in ("rescale_every", "num_hidden_layers"))
    if isinstance(every, int) and isinstance(blocks, int) and 0 < every < blocks:
        raise UserError(
            f"{type(module).__name__} divides weights of its blocks when it runs (rescale_every={every} in"
            " its config), so that they would be saved divided; set rescale_every to 0 in its config.json"
            " before it is loaded"
        )
